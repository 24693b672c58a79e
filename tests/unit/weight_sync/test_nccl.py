import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from vllm.distributed.weight_transfer import nccl_common, packed_tensor

from rpa_ray.actors.errors import UnusableRankError, WorkerError
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.weight_sync import nccl
from rpa_ray.weight_sync.nccl import NcclSender

WEIGHTS = [torch.ones(2, 3), torch.zeros(4)]
NAMES = ["a", "b"]


class Group:
    """A communicator in which a broadcast, as in NCCL, has no end but an abort."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.aborted = threading.Event()
        self.can_be_aborted = True

    def destroy(self) -> None:
        self.aborted.set()
        if self.can_be_aborted:
            self.ended.set()


class FakePool:
    """Two engines that note what they are asked; how a call of them ends is set from outside."""

    def __init__(self, group: Group) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.group = group
        self.failure: Exception | None = None
        self.waits_for_abort = False
        self.num_restarts = 0

    def __len__(self) -> int:
        return 2

    def call_each(self, method: str, args_of_worker: Sequence[Any]) -> list[object]:
        self.calls.append((method, list(args_of_worker)))
        if self.waits_for_abort:
            assert self.group.aborted.wait(5)
        if self.failure is not None:
            raise self.failure
        self.group.ended.set()
        return [None, None]

    def restart_silent(self, limit_s: float) -> list[object]:
        self.num_restarts += 1
        return []


@pytest.fixture
def group() -> Iterator[Group]:
    yield (group := Group())
    group.ended.set()  # lets a thread that is stuck go


@pytest.fixture
def pool(group: Group, monkeypatch: pytest.MonkeyPatch) -> FakePool:
    def broadcast(group: Group, **given: Any) -> None:
        assert group.ended.wait(5)

    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.setattr(nccl_common, "trainer_init", lambda info: group)
    monkeypatch.setattr(packed_tensor, "packed_nccl_broadcast_producer", broadcast)
    monkeypatch.setattr(nccl, "GRACE_S", 0.05)
    return FakePool(group)


def connected(pool: FakePool, *, tensor_parallel_size: int = 1) -> NcclSender:
    sender = NcclSender(cast(RolloutPool, pool), tensor_parallel_size=tensor_parallel_size)
    sender.connect()
    pool.group.ended.clear()
    return sender


def test_every_engine_gets_its_own_place_in_the_transfer(pool: FakePool) -> None:
    connected(pool, tensor_parallel_size=4)
    ((method, requests),) = pool.calls
    assert method == "init_weight_transfer_engine"
    # the sender is rank 0, the first engine 1 to 4, the second 5 to 8
    infos = [request[0]["init_info"] for request in requests]
    assert [(info["rank_offset"], info["world_size"]) for info in infos] == [(1, 9), (5, 9)]


def test_engines_receive_while_the_group_is_broadcast(pool: FakePool) -> None:
    sender = connected(pool)
    sender.send(NAMES, WEIGHTS, [{}])
    told = {"names": NAMES, "dtype_names": ["float32"] * 2, "shapes": [[2, 3], [4]]}
    assert pool.calls[-1] == ("update_weights", [({"update_info": told},)] * 2)
    assert not pool.group.aborted.is_set()


def test_an_engine_that_dies_ends_the_broadcast_and_is_named(pool: FakePool) -> None:
    sender = connected(pool)
    pool.failure = WorkerError("rollout worker 1 must answer update_weights")
    with pytest.raises(WorkerError, match="rollout worker 1"):
        sender.send(NAMES, WEIGHTS, [{}])
    assert pool.group.aborted.is_set()
    # and the other engine, which may wait for it without end, is not left there
    assert pool.num_restarts == 1


def test_a_broadcast_that_cannot_be_ended_makes_the_rank_unusable(pool: FakePool) -> None:
    sender = connected(pool)
    pool.failure = WorkerError("rollout worker 1 must answer update_weights")
    pool.group.can_be_aborted = False
    with pytest.raises(UnusableRankError, match=r"started again\. Cause: rollout worker 1"):
        sender.send(NAMES, WEIGHTS, [{}])


def test_a_broadcast_that_fails_does_not_leave_the_engines_waiting(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broadcast(**given: Any) -> None:
        raise RuntimeError("NCCL error: unhandled system error")

    sender = connected(pool)
    monkeypatch.setattr(packed_tensor, "packed_nccl_broadcast_producer", broadcast)
    pool.waits_for_abort = True
    with pytest.raises(RuntimeError, match="unhandled system error"):
        sender.send(NAMES, WEIGHTS, [{}])


def test_a_broadcast_has_little_longer_than_the_engines(pool: FakePool) -> None:
    sender = connected(pool)
    pool.calls.clear()
    pool.group = Group()  # not the one that is waited in
    with pytest.raises(WorkerError, match=r"update_weights must end .* within 0\.05 s after the"):
        sender.send(NAMES, WEIGHTS, [{}])


def test_an_engine_that_dies_while_it_connects_is_named(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer_init(info: Any) -> object:
        raise RuntimeError("not all workers joined")

    monkeypatch.setattr(nccl_common, "trainer_init", trainer_init)
    pool.failure = WorkerError("rollout worker 1 must answer init_weight_transfer_engine")
    with pytest.raises(WorkerError, match="rollout worker 1"):
        connected(pool)


def test_a_group_that_is_met_when_an_engine_refused_is_left(pool: FakePool) -> None:
    pool.failure = ValueError("rollout worker 1: no such transfer")
    with pytest.raises(ValueError, match="no such transfer"):
        connected(pool)
    assert pool.group.aborted.is_set()


def test_a_communicator_is_given_back_with_its_sender(pool: FakePool) -> None:
    connected(pool)  # and kept by nobody
    assert pool.group.aborted.is_set()


def test_a_new_thread_is_on_the_gpu_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    on: list[int] = []
    cuda = SimpleNamespace(
        is_available=lambda: True, current_device=lambda: 3, set_device=on.append
    )
    monkeypatch.setattr(nccl.torch, "cuda", cuda)
    seen: list[int] = []
    nccl._in_thread(lambda: seen.extend(on)).result(5)
    assert seen == [3]
