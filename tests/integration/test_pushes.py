"""Pushes by every backend between processes: what arrives, and how they end where a side dies."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from transfer_on_cpu import (
    DIED,
    ENGINES,
    NAMESPACE,
    NUM_CHUNKS,
    CpuTransferWorker,
    RankProcesses,
    small_llama,
)
from warm_python import warm_python

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.errors import WorkerError
from rpa_ray.actors.pools import _CPU_ROLLOUT_ENVIRONMENT, _ROLLOUT_ENVIRONMENT, RolloutPool
from rpa_ray.actors.status import WorkerStatus, own_status
from rpa_ray.actors.worker_pool import Member, WorkerPool
from rpa_ray.weight_sync.verify import verify_served

LIMIT_S = 120.0
"""Longest wait for one answer of an engine: one is built, on a machine that does other work."""
ENVIRONMENT = {
    **_ROLLOUT_ENVIRONMENT,
    **_CPU_ROLLOUT_ENVIRONMENT,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ),
}
IMPORTED = ["transfer_on_cpu", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker"]
"""What an engine's process imports, for eight of the ten seconds that one takes to come up."""
SLOW = pytest.mark.slow
BACKENDS = ["nccl", "ipc", pytest.param("object_store", marks=SLOW)]
# Of 20 pushes and 4 connections. One policy of 0.33 MiB kept at each push would be 6.6 MiB; three
# runs measured up to 2.9 (which levels off at 6 within 60 pushes), one thread and one descriptor.
BOUNDS = {"private MiB": 5, "threads": 3, "file descriptors": 3}
RANK_DEATHS = [
    pytest.param(rank, chunk, marks=[] if (rank, chunk) in [(0, 0), (1, 2), (0, 3)] else SLOW)
    for rank in range(2)
    for chunk in range(NUM_CHUNKS)
]

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def engine_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the command of a Python that has imported what an engine needs."""
    with warm_python(tmp_path_factory.getbasetemp() / "engine-python", IMPORTED) as command:
        yield command


@pytest.fixture(scope="module")
def pool(engine_python: str, ray_cluster: None) -> Iterator[RolloutPool]:
    members = []
    for i, name in enumerate(ENGINES):
        variables = {**ENVIRONMENT, "RPA_RAY_TEST_GPU": f"GPU-{i}"}
        actor = ray.remote(CpuTransferWorker).options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_restarts=-1,
            runtime_env={"env_vars": variables, "py_executable": engine_python},
        )
        members.append(Member(name=name, handle=actor.remote()))
    yield (pool := RolloutPool(members, time_limit_s=LIMIT_S))
    pool.shut_down()


@pytest.fixture(scope="module", params=BACKENDS)
def config(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EngineConfig:
    folder = tmp_path_factory.getbasetemp() / "small-llama"
    small_llama(seed=0).save_pretrained(folder)
    return EngineConfig(
        model_path=str(folder), max_model_len=32, dtype="float32", backend=request.param
    )


@contextmanager
def ranks_that_serve(
    config: EngineConfig,
    folder: Path,
    *,
    num_ranks: int = 2,
    num_engines: int = 2,
    **policy: Any,
) -> Iterator[RankProcesses]:
    """Return the ranks of a learner that have a policy and are about to push it."""
    ranks = RankProcesses(num_ranks, folder, time_limit_s=LIMIT_S)
    try:
        ranks.ask("has_policy", **{"zero_stage": 3, **policy})
        ranks.ask("serves", config=config, num_engines=num_engines)
        yield ranks
    finally:
        ranks.end()


@pytest.mark.parametrize(
    "case",
    [
        {"num_ranks": 1, "num_engines": 1, "zero_stage": 1, "seed": 1},
        {"zero_stage": 1, "seed": 2},
        {"zero_stage": 1, "seed": 3, "lora": True},
        {"zero_stage": 3, "seed": 4},
        {"zero_stage": 3, "seed": 5, "lora": True},
    ],
    ids=lambda case: "-".join(f"{name}={value}" for name, value in case.items()),
)
def test_engines_receive_the_bytes_of_the_policy(
    case: dict[str, Any], pool: RolloutPool, config: EngineConfig, tmp_path: Path
) -> None:
    with ranks_that_serve(config, tmp_path, **case) as ranks:
        pushed = ranks.ask("push", version=1)
        expected = ranks.ask("digests")[0]
    assert len(expected) == 20  # embedding, two layers of nine and the last norm; the head is tied
    assert [result.digests for result in pushed] == [expected] * len(pushed)
    reached = RolloutPool(pool._members[: case.get("num_engines", 2)], time_limit_s=LIMIT_S)
    verify_served(pool=reached, expected=expected)


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_an_engine_that_dies_in_a_push_is_rebuilt_and_the_push_is_whole(
    chunk: int, pool: RolloutPool, config: EngineConfig, tmp_path: Path
) -> None:
    with ranks_that_serve(config, tmp_path, seed=chunk) as ranks:
        pool.load(config)
        ray.get(pool._members[chunk % 2].handle.dies_at.remote(chunk))
        pushed = ranks.ask("push", version=1)
        expected = ranks.ask("digests")[0]
    assert [result.num_attempts for result in pushed] == [2, 2]
    assert max(result.seconds for result in pushed) < LIMIT_S
    verify_served(pool=pool, expected=expected)


@pytest.mark.parametrize(("victim", "chunk"), RANK_DEATHS)
def test_a_rank_that_dies_in_a_push_ends_the_others_and_the_next_ranks_push_whole(
    victim: int, chunk: int, pool: RolloutPool, config: EngineConfig, tmp_path: Path
) -> None:
    with ranks_that_serve(config, tmp_path) as ranks:
        ranks.ask("push", version=1)
        started = time.monotonic()
        answers = ranks.tell("push", version=2, victim=victim, dies_at=chunk)
        assert time.monotonic() - started < LIMIT_S
    failures = [failure for _, failure in answers]
    assert failures[victim] == DIED
    assert str(failures[1 - victim]).startswith("WeightSyncError: ranks must gather and agree")
    with ranks_that_serve(config, tmp_path, seed=7) as ranks:
        pushed = ranks.ask("push", version=3)
        expected = ranks.ask("digests")[0]
    assert max(result.seconds for result in pushed) < LIMIT_S
    verify_served(pool=pool, expected=expected)


def test_twenty_pushes_leave_nothing_behind(
    pool: RolloutPool, config: EngineConfig, tmp_path: Path
) -> None:
    with ranks_that_serve(config, tmp_path) as ranks:

        def held() -> list[dict[str, int]]:
            return [*ranks.ask("held"), *pool.call_all("held")]  # type: ignore[list-item]

        before: list[dict[str, int]] = []
        for version in range(30):
            if version == 10:  # most of what is made once has been made
                before = held()
            if version % 5 == 4:
                ranks.ask("serves", config=config)  # and is connected anew
            ranks.ask("push", version=version)
        after = held()
    for old, new in zip(before, after, strict=True):
        grown = {what: new[what] - old[what] for what in old}
        assert all(more <= BOUNDS.get(what, 0) for what, more in grown.items()), grown


def test_an_engine_without_a_rank_on_its_gpu_is_reached_unless_it_reads_the_gpus_memory(
    pool: RolloutPool, config: EngineConfig, tmp_path: Path
) -> None:
    with ranks_that_serve(config, tmp_path, num_ranks=1, zero_stage=1) as ranks:
        ((pushed, failure),) = ranks.tell("push", version=1)
    if config.backend == "ipc":
        told = "ValueError: rollout worker 1: IPC handle not found for GPU UUID GPU-1"
        assert str(failure).startswith(told)
    else:
        verify_served(pool=pool, expected=pushed.digests)


class Sleeper:
    """A worker that is busy for long, or dies."""

    def status(self) -> WorkerStatus:
        return own_status()

    def work(self, seconds: float) -> None:
        time.sleep(seconds)
        os._exit(1)


def test_a_call_ends_with_the_first_worker_that_dies_and_all_silent_ones_are_restarted(
    ray_cluster: None,
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    actor = ray.remote(Sleeper).options(num_cpus=0, max_restarts=-1)
    members = [Member(name=f"worker {i}", handle=actor.remote()) for i in range(3)]
    pool = WorkerPool(members, time_limit_s=60.0)
    pool.wait_until_up()
    started = time.monotonic()
    with pytest.raises(WorkerError, match="worker 2 must answer work"):
        pool.call_each("work", [(3600.0,), (3600.0,), (0.0,)])
    impatient = WorkerPool(members, time_limit_s=3.0)
    with pytest.raises(WorkerError, match="worker 0 must answer status, got no answer within 3 s"):
        impatient.wait_until_up()
    pool.wait_until_up()  # worker 1 too
    assert time.monotonic() - started < 60
    pool.shut_down()
