"""What a learner process works with: its rank, the warm pools, the cache, and who is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rpa_ray.actors.pools import RolloutPool, ScorerPool
from rpa_ray.config import ClusterSettings
from rpa_ray.learner.engine import EngineSettings, OptimizerSettings
from rpa_ray.learner.ranks import Ranks


class Progress(Protocol):
    """Hears how far a job is; never waits for an answer."""

    def start(self, job: str, num_steps: int) -> None:
        """A job has so many steps."""
        ...

    def enter(self, job: str, stage: str) -> None:
        """A job comes to a stage."""
        ...

    def advance(self, job: str, step: int, note: str) -> None:
        """A step of a job is done."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerProcess:
    """One learner process among its pools."""

    ranks: Ranks
    rollouts: RolloutPool
    scorers: ScorerPool
    cache: Path
    cluster: ClusterSettings
    progress: Progress
    is_stopped: Callable[[str, Sequence[Mapping[str, float]]], bool] = lambda job, looks: False
    """Whether an attack ends at its last look, by its name and its looks; asked on the main rank,
    and may wait for an answer."""

    def engine_settings(
        self, optimizer: OptimizerSettings, *, batch_size: int, dtype: str
    ) -> EngineSettings:
        """Return DeepSpeed's settings for a job of a global batch size."""
        if batch_size % self.ranks.size:
            raise ValueError(
                f"batch_size must be a multiple of cluster.num_ranks ({self.ranks.size}), got "
                f"{batch_size}. Change one of the two."
            )
        share = batch_size // self.ranks.size
        return EngineSettings(
            optimizer=optimizer,
            micro_batch_size=min(share, self.cluster.micro_batch_size or share),
            micro_batch_tokens=self.cluster.micro_batch_tokens,
            num_ranks=self.ranks.size,
            zero_stage=self.cluster.zero_stage,
            offload_optimizer=self.cluster.offload_optimizer,
            bf16=dtype == "bfloat16",
            deepspeed_file=self.cluster.deepspeed,
        )
