"""Pools of rollout and scoring workers: made by the driver or a rank, used by the ranks, kept warm.

A pool holds actor handles and may be pickled.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.environment import guest_environment, process_environment
from rpa_ray.actors.rollout import EngineStatus, Generated, RolloutWorker, Sampling
from rpa_ray.actors.scoring import ScorerSpec, ScoringWorker
from rpa_ray.actors.worker_pool import Member, WorkerPool

if TYPE_CHECKING:  # the driver starts without transformers
    from rpa_ray.scoring.perplexity import AnswerNll

DEFAULT_TIME_LIMIT_S = 600.0
_AS_OFTEN_AS_NEEDED = -1
"""Restarts of a worker; callers bound how often they try again."""

_ROLLOUT_ENVIRONMENT = {
    # The engine in the actor's own process: three to four times faster on small models.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_CPU_ROLLOUT_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The CPU sampler is compiled on the first call, for seconds, and is no faster afterwards.
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Where a worker is put, which Ray would choose otherwise."""

    node_id: str
    """Of Ray."""
    gpu_id: str | None = None
    """The GPU of a rank that it works on too, as CUDA_VISIBLE_DEVICES names it there; None for a
    worker that lies beside no rank."""
    is_bound: bool = False
    """Whether it can be nowhere else; otherwise another node takes it where this one is lost."""


class RolloutPool(WorkerPool):
    """Rollout engines that all serve the same version of the policy."""

    def load(self, config: EngineConfig) -> list[EngineStatus]:
        """Have every engine up for this architecture; nothing is served until the next push."""
        self.wait_until_up()
        return cast(list[EngineStatus], self.call_all("load", config))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        version: int,
    ) -> list[Generated]:
        """Return one answer to each prompt (token ids), in their order.

        The answers do not depend on the number of workers; but in bfloat16 on processors with AMX,
        whose kernels round by the number of rows.

        Raises:
            StaleWeightsError: If an engine does not serve ``version``.
            WorkerError: If a worker died, failed or did not answer in time.
            ValueError: If prompt plus answer can be longer than the engines' limit.
        """
        parts = _contiguous_parts(len(prompts), len(self))
        answers = self.call_each(
            "generate", [(prompts[a:b], sampling, version, a) for a, b in parts]
        )
        return [answer for part in answers for answer in cast(list[Generated], part)]

    def digests(self) -> dict[str, dict[str, str]]:
        """Return, by worker, the SHA-256 of every weight received in the last push."""
        received = self.call_all("received_digests")
        names = [member.name for member in self._members]
        return dict(zip(names, cast(list[dict[str, str]], received), strict=True))


class PendingScores:
    """Scores that are being computed."""

    def __init__(self, pool: WorkerPool, refs: Sequence["ray.ObjectRef[object]"]) -> None:
        self._pool = pool
        self._refs = refs

    def result(self) -> list[float]:
        """Wait for the scores, in the order of the pairs.

        Raises:
            WorkerError: If a worker died, failed or did not answer in time.
        """
        parts = self._pool.collect("score", self._refs)
        return [score for part in parts for score in cast(list[float], part)]


class ScorerPool(WorkerPool):
    """Scoring workers that each keep the same models warm."""

    def __init__(self, members: Sequence[Member], *, time_limit_s: float) -> None:
        super().__init__(members, time_limit_s=time_limit_s)
        self._specs: dict[str, ScorerSpec] = {}

    def load(self, name: str, spec: ScorerSpec) -> None:
        """Have every worker load a model under ``name``; a no-op where it has it."""
        self.wait_until_up()
        self.call_all("load", name, spec)
        self._specs[name] = spec

    def unload(self, name: str) -> None:
        """Let every worker drop the model called ``name``."""
        self._spec(name)
        self.call_all("unload", name)
        del self._specs[name]

    def score(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return one score for each (prompt, answer) pair.

        Raises:
            WorkerError: If a worker died, failed or did not answer in time.
            ValueError: If no model of this name was loaded through this pool.
        """
        return self.score_async(name, pairs).result()

    def score_async(self, name: str, pairs: Sequence[tuple[str, str]]) -> PendingScores:
        """Start scoring and return at once, so that several models can work at the same time."""
        return PendingScores(self, self._submit("score", name, pairs))

    def answer_nll(self, name: str, pairs: Sequence[tuple[str, str]]) -> list["AnswerNll"]:
        """Return each answer's negative log-likelihood under a perplexity model."""
        parts = self.collect("answer_nll", self._submit("answer_nll", name, pairs))
        return [nll for part in parts for nll in cast("list[AnswerNll]", part)]

    def _submit(
        self, method: str, name: str, pairs: Sequence[tuple[str, str]]
    ) -> list["ray.ObjectRef[object]"]:
        spec = self._spec(name)
        # The spec goes along, so that a restarted worker loads the model again by itself.
        return [
            getattr(member.handle, method).remote(name, spec, pairs[a:b])
            for member, (a, b) in zip(
                self._members, _contiguous_parts(len(pairs), len(self)), strict=True
            )
        ]

    def _spec(self, name: str) -> ScorerSpec:
        if name not in self._specs:
            raise ValueError(
                f"name must be a loaded scorer, one of {sorted(self._specs)}, got {name!r}. "
                "Load it first."
            )
        return self._specs[name]


def create_rollout_pool(
    num_workers: int,
    *,
    num_cpus: float,
    num_gpus: float = 0.0,
    num_threads: int = 1,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    seats: Sequence[Seat] = (),
) -> RolloutPool:
    """Start rollout workers and return their pool at once; they import vLLM meanwhile.

    Args:
        num_workers: Engines, each in an actor of its own.
        num_cpus: CPUs that Ray sets aside for each; 0 asks for none.
        num_gpus: GPUs that Ray sets aside for each; an engine spans as many.
        num_threads: CPU threads of each engine.
        time_limit_s: Longest wait for any answer, seconds.
        seats: Where each lies; none leaves it to Ray.
    """
    has_gpu = num_gpus > 0 or any(seat.gpu_id is not None for seat in seats)
    environment = {
        **process_environment(num_threads=num_threads, has_gpu=has_gpu),
        **_ROLLOUT_ENVIRONMENT,
    }
    if not has_gpu:
        environment |= _CPU_ROLLOUT_ENVIRONMENT
    actor, reserved = ray.remote(RolloutWorker), {"num_cpus": num_cpus, "num_gpus": num_gpus}
    members = _start(actor, "rollout worker", reserved, environment, seats or [None] * num_workers)
    return RolloutPool(members, time_limit_s=time_limit_s)


def create_scorer_pool(
    num_workers: int,
    *,
    num_cpus: float,
    num_gpus: float = 0.0,
    num_threads: int = 1,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    seats: Sequence[Seat] = (),
) -> ScorerPool:
    """Start scoring workers and return their pool at once, importing; arguments as for rollouts."""
    has_gpu = num_gpus > 0 or any(seat.gpu_id is not None for seat in seats)
    environment = process_environment(num_threads=num_threads, has_gpu=has_gpu)
    actor, reserved = ray.remote(ScoringWorker), {"num_cpus": num_cpus, "num_gpus": num_gpus}
    members = _start(actor, "scoring worker", reserved, environment, seats or [None] * num_workers)
    return ScorerPool(members, time_limit_s=time_limit_s)


def _start(
    actor: Any,
    name: str,
    reserved: Mapping[str, float],
    environment: Mapping[str, str],
    seats: Sequence[Seat | None],
) -> list[Member]:
    members = []
    for number, seat in enumerate(seats):
        variables, options = dict(environment), {}
        if seat is not None:
            soft = not seat.is_bound
            options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(seat.node_id, soft)}
            if seat.gpu_id is not None:
                variables |= guest_environment(seat.gpu_id)
        handle = actor.options(
            **reserved,
            **options,
            max_restarts=_AS_OFTEN_AS_NEEDED,
            runtime_env={"env_vars": variables},
        ).remote()
        handle.prewarm.remote()
        members.append(Member(name=f"{name} {number}", handle=cast(ActorHandle[Any], handle)))
    return members


def _contiguous_parts(num_items: int, num_parts: int) -> list[tuple[int, int]]:
    """Return (start, stop) of each part; sizes differ by at most one."""
    bounds = [num_items * part // num_parts for part in range(num_parts + 1)]
    return list(itertools.pairwise(bounds))
