"""Settings of where the work runs: machines, processes and what each of them reserves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rpa_ray.config.base import Settings

ENGINE_FRAC = 0.9
"""Share of a GPU of its own that an engine fills whatever it needs: the rest is its KV cache."""


class MachineSettings(Settings):
    """The machines of a cluster, all alike, for plans that are made elsewhere."""

    num_nodes: int = Field(1, ge=1)
    cpus_per_node: float = Field(gt=0)
    gib_per_node: float = Field(gt=0)
    """Main memory."""
    gpus_per_node: int = Field(0, ge=0)
    gib_per_gpu: float = Field(80.0, gt=0)
    """Memory of a GPU as it tells it, in GiB of 2**30 bytes."""


class RolloutEngineSettings(Settings):
    """Arguments of vLLM, each under vLLM's own name; None leaves it to hardware and plan."""

    tensor_parallel_size: int | None = Field(None, ge=1)
    """GPUs that one engine spans; None takes those of ``gpus_per_rollout_worker``."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of each of its GPUs that an engine fills. None: 0.9 of a GPU of its own, and what the
    plan leaves of one that it shares with a rank."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Answers that an engine works on at once; others wait."""
    enforce_eager: bool | None = None
    """Whether no CUDA graphs are captured, which saves memory and start-up; None: on CPUs alone."""


class ClusterSettings(Settings):
    """Where the work runs."""

    address: str | None = None
    """Ray address, ``auto`` for a cluster that runs here; None takes RAY_ADDRESS or starts one."""
    machines: MachineSettings | None = None
    """What `rpa-ray plan` places the work on, and whose memory bounds it; None: this machine."""
    layout: Literal["apart", "colocated", "per_gpu"] = "apart"
    """``apart``: ranks, engines and scorers lie on GPUs of their own. ``colocated``: beside each
    rank lie an engine and a scorer, on the rank's own GPU. ``per_gpu``: so does a cell of one rank,
    and as many cells run side by side as there are GPUs. Where they lie beside ranks, the numbers
    of workers and all GPUs follow from ``num_ranks``."""
    num_ranks: int = Field(1, ge=1, le=4096)
    """Learner processes."""
    cpus_per_rank: float = Field(1.0, gt=0)
    gpus_per_rank: float = Field(0.0, ge=0)
    num_rollout_workers: int = Field(1, ge=1)
    cpus_per_rollout_worker: float = Field(0.5, ge=0)
    gpus_per_rollout_worker: float = Field(0.0, ge=0)
    num_scorer_workers: int = Field(1, ge=1)
    cpus_per_scorer_worker: float = Field(0.25, ge=0)
    gpus_per_scorer_worker: float = Field(0.0, ge=0)
    engine: RolloutEngineSettings = RolloutEngineSettings()
    threads_per_process: int = Field(1, ge=1)
    """CPU threads of each rank, rollout and scoring process. They work at the same time: on two
    cores one thread each took 0.7 times the time of two, and other work on the machine makes
    threads of one process wait for each other."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False
    """Keep masters, moments and gradients in main memory, where the CPUs step them: a GPU then
    holds weights and activations alone. Under ZeRO-3."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows of one rank in one backward pass; None takes its whole part of the batch."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens of one rank in one pass, padding included: rows of like length come together, each
    part as wide as its longest, and a row that is longer comes alone. The sum of the parts is the
    step of the whole up to rounding. None leaves rows in their order, at the width of the whole."""
    gradient_checkpointing: bool = False
    """Keep of each layer its input alone for the backward pass, which computes the layer once more:
    a step takes one forward pass more, and the memory of one layer in place of all."""
    deepspeed: Path | None = Field(None, strict=False)
    """A DeepSpeed JSON whose keys win over ours."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest wait for one answer of a worker."""
    wait_for_nodes_s: float = Field(0.0, ge=0)
    """Longest wait until a cluster that is joined has room for a cell: for nodes that an autoscaler
    brings. 0 refuses at once a cluster that is too small."""
    parallel_cells: int | None = Field(None, ge=1)
    """Cells of a campaign that run side by side, each with ranks and workers of its own; None takes
    as many as this machine, or a cluster that is joined, has free room for."""
    checkpoint_interval_s: float = Field(30.0, ge=0)
    """Least time between two checkpoints of a training; an interrupted one repeats at most what
    came after its last. More where checkpoints would hold it up for above 5 % of the time; 0 saves
    after every step, or once the one before is written."""

    @model_validator(mode="before")
    @classmethod
    def _with_what_follows(cls, given: Any) -> Any:
        """Complete what follows from the layout or the engine, where nothing else is given."""
        if not isinstance(given, Mapping):
            return given
        if given.get("layout", "apart") != "apart":
            return what_follows(given.get("num_ranks", 1)) | dict(given)
        engine = given.get("engine")
        span = engine.get("tensor_parallel_size") if isinstance(engine, Mapping) else None
        return ({} if span is None else {"gpus_per_rollout_worker": span}) | dict(given)

    @property
    def is_colocated(self) -> bool:
        """Return whether each rank has an engine and a scorer beside it."""
        return self.layout != "apart"

    def gpus_of(self, kind: str) -> float:
        """Return the GPUs that a process works on: its own, or its rank's.

        Args:
            kind: ``rank``, ``rollout_worker`` or ``scorer_worker``.
        """
        of_kind: float = getattr(self, f"gpus_per_{'rank' if self.is_colocated else kind}")
        return of_kind


def what_follows(num_ranks: int) -> dict[str, Any]:
    """Return the settings that follow where engines and scorers lie beside the ranks."""
    return {
        "gpus_per_rank": 1.0,
        "num_rollout_workers": num_ranks,
        "gpus_per_rollout_worker": 0.0,
        "num_scorer_workers": num_ranks,
        "gpus_per_scorer_worker": 0.0,
    }
