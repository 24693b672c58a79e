from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import pytest
import torch
from torch.nn import Parameter

from rpa_ray.actors.engine import EngineConfig, TransferBackend
from rpa_ray.actors.errors import WorkerError
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.actors.rollout import EngineStatus
from rpa_ray.actors.status import own_status
from rpa_ray.weight_sync.agreement import WeightSyncError
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import (
    MAX_ATTEMPTS,
    WeightSync,
    choose_backend,
)


class FakePool:
    """Two engines that note what they are asked; the first calls to load fail."""

    def __init__(self, num_failures: int = 0) -> None:
        self.calls: list[tuple[str, list[Sequence[object]]]] = []
        self.num_failures = num_failures
        self.engine_ids = ["x", "y"]

    def __len__(self) -> int:
        return 2

    def load(self, config: EngineConfig) -> list[EngineStatus]:
        if self.num_failures:
            self.num_failures -= 1
            raise WorkerError("rollout worker 1 must answer load, got nothing")
        return [
            EngineStatus(process=own_status(), engine_id=engine_id, version=None)
            for engine_id in self.engine_ids
        ]

    def call_each(self, method: str, args_of_worker: Sequence[Sequence[object]]) -> list[object]:
        self.calls.append((method, list(args_of_worker)))
        return [None, None]

    def call_all(self, method: str, *args: object) -> list[object]:
        return self.call_each(method, [args, args])

    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]


CONFIG = EngineConfig(model_path="/nowhere", max_model_len=8, dtype="float32")


def sync_of(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> WeightSync:
    source = ShardedSource([("w", Parameter(torch.ones(2)))], dtype=torch.float32)
    monkeypatch.setattr("ray.put", lambda value: value)  # without a cluster
    return WeightSync(pool=cast(RolloutPool, pool), source=source, engine=CONFIG, rank=0)


PUSH = ["start_weight_update", "update_weights", "finish_weight_update", "update_weight_version"]


def test_a_push_sends_all_weights_before_it_names_the_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool()
    sync = sync_of(pool, monkeypatch)
    assert sync.version is None
    result = sync.push(3)
    assert pool.methods() == ["init_weight_transfer_engine", *PUSH]
    assert pool.calls[-1][1] == [(3,), (3,)]
    assert (result.num_attempts, result.num_bytes, sync.version) == (1, 8, 3)


def test_engines_are_connected_again_only_where_they_are_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool()
    sync = sync_of(pool, monkeypatch)
    for version in (1, 2):
        sync.push(version)
    assert pool.methods().count("init_weight_transfer_engine") == 1
    pool.engine_ids = ["x", "z"]
    sync.push(3)
    assert pool.methods().count("init_weight_transfer_engine") == 2


def test_a_failed_push_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool(num_failures=2)
    assert sync_of(pool, monkeypatch).push(1).num_attempts == 3


def test_a_push_that_always_fails_ends_with_the_words_of_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync = sync_of(FakePool(num_failures=MAX_ATTEMPTS), monkeypatch)
    with pytest.raises(WeightSyncError, match="rollout worker 1 must answer load"):
        sync.push(1)
    assert sync.version is None


@pytest.mark.parametrize(
    ("on_gpus", "colocated", "backend"),
    [
        (False, False, "object_store"),
        (False, True, "object_store"),
        (True, True, "ipc"),
        (True, False, "nccl"),
    ],
)
def test_backend_follows_the_hardware(
    on_gpus: bool, colocated: bool, backend: TransferBackend
) -> None:
    assert choose_backend(on_gpus=on_gpus, colocated=colocated) == backend


def test_a_gather_that_fails_ends_the_push_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool()
    sync = sync_of(pool, monkeypatch)

    def gather(parameters: Sequence[Parameter]) -> nullcontext[None]:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(sync._source, "_gather", gather)
    with pytest.raises(WeightSyncError, match="got RuntimeError: Connection closed by peer"):
        sync.push(1)


def test_a_group_is_sent_when_its_gather_has_ended_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    class Noted(FakePool):
        def call_each(self, method: str, args: Sequence[Sequence[object]]) -> list[object]:
            order.append(method)
            return super().call_each(method, args)

    @contextmanager
    def gather(parameters: Sequence[Parameter]) -> Iterator[None]:
        yield
        order.append("gather")

    sync = sync_of(Noted(), monkeypatch)
    monkeypatch.setattr(sync._source, "_groups", [["w"], ["w"]])
    monkeypatch.setattr(sync._source, "_gather", gather)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: order.append("synchronize"))
    sync.push(1)
    assert order[2:8] == ["gather", "synchronize", "update_weights"] * 2


def test_what_no_second_try_would_change_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool()
    tries: list[EngineConfig] = []

    def load(config: EngineConfig) -> list[EngineStatus]:
        tries.append(config)
        raise ValueError("engine must be one that can be built")

    monkeypatch.setattr(pool, "load", load)
    with pytest.raises(ValueError, match="must be one that can be built"):
        sync_of(pool, monkeypatch).push(1)
    assert len(tries) == 1
