import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from rpa_ray.actors.errors import UnusableRankError, WorkerError
from rpa_ray.weight_sync.agreement import any_rank_failed, together


def raising(error: Exception) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


CALLS: list[list[Callable[[], object]]] = [
    [lambda: "a", lambda: "b"],
    [lambda: "a", raising(WorkerError("engine 1 must answer"))],
    [raising(RuntimeError("reset by peer")), lambda: "b"],
    [raising(ValueError("no such weight")), raising(WorkerError("engine 1 must answer"))],
    [raising(UnusableRankError("stuck")), lambda: "b"],
]
"""What each of two ranks calls, one after the other."""
ENDS = [
    ["['a', 'b']", "['a', 'b']"],
    ["WorkerError: rank 1: engine 1 must answer"] * 2,
    ["WorkerError: rank 0: RuntimeError: reset by peer"] * 2,
    ["ValueError: no such weight", "WeightSyncError: rank 0: ValueError: no such weight"],
    ["UnusableRankError: stuck", "WeightSyncError: rank 0: UnusableRankError: stuck"],
]


def end_of(call: Callable[[], object]) -> str:
    try:
        return repr(together(call))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _agree(rank: int, rendezvous: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    answers = [any_rank_failed(failed) for failed in (False, rank == 1, True)]
    Path(folder, str(rank)).write_text(repr(answers))
    Path(folder, f"ends-{rank}").write_text("\n".join(end_of(calls[rank]) for calls in CALLS))
    dist.destroy_process_group()


def test_all_ranks_learn_of_what_happened_on_one(tmp_path: Path) -> None:
    mp.spawn(_agree, (f"file://{tmp_path}/rendezvous", str(tmp_path)), nprocs=2)
    answers = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert answers == ["[False, True, True]"] * 2
    for rank in range(2):
        ends = (tmp_path / f"ends-{rank}").read_text().splitlines()
        assert ends == [told[rank] for told in ENDS]


def test_without_a_process_group_a_rank_answers_for_itself() -> None:
    assert any_rank_failed(True)
    assert not any_rank_failed(False)
    assert together(lambda: "a") == ["a"]
    with pytest.raises(WorkerError, match=re.escape("rank 0: OSError: no route")):
        together(raising(OSError("no route")))
