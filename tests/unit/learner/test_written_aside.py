"""Checkpoints that a thread writes while the training goes on."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
import torch
from crashes import crash
from fakes import ONE_RANK
from torch import Tensor

from rpa_ray.learner import checkpoint_cost
from rpa_ray.learner.aside import Aside
from rpa_ray.learner.checkpoint_cost import PROBE_BYTES
from rpa_ray.learner.checkpoints import Checkpoints
from rpa_ray.learner.ranks import Ranks

DISK_IS_FULL = OSError(errno.ENOSPC, "No space left on device")


class OneTensor:
    """An engine whose state is a tensor in a file."""

    zero_stage = 1
    module = torch.nn.Identity()

    def __init__(self) -> None:
        self.state = torch.zeros(3)

    def save(self, folder: Path, write: Callable[[Any, str], None]) -> None:
        folder.mkdir(parents=True)
        write({"state": self.state}, str(folder / "engine.pt"))

    def load(self, folder: Path) -> None:
        self.state = torch.load(folder / "engine.pt", weights_only=True)["state"]


@dataclass(frozen=True, kw_only=True)
class TwoRanks(Ranks):
    """This rank beside one that says the same whatever it is asked."""

    said: list[Any]

    def gather(self, values: list[Any]) -> list[list[Any]]:
        return [values, self.said]


def training_in(folder: Path, ranks: Ranks = ONE_RANK, interval_s: float = 0.0) -> Checkpoints:
    """Return the checkpoints of a training whose state is worth a copy."""
    engine: Any = OneTensor()
    found = Checkpoints(folder, ranks=ranks, engine=engine, parts={}, interval_s=interval_s)
    found._num_bytes = PROBE_BYTES + 1
    return found


def state_of(training: Checkpoints) -> Tensor:
    state: Tensor = training._engine.state  # type: ignore[attr-defined]
    return state


def found(folder: Path) -> tuple[int, list[float]]:
    """Return from which step a training goes on, and with which state."""
    training = training_in(folder)
    return training.restore(), state_of(training).tolist()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Return what the threads wait for before they write."""
    opened, write = Event(), Aside._write

    def later(aside: Aside) -> None:
        opened.wait()
        write(aside)

    monkeypatch.setattr(Aside, "_write", later)
    yield opened
    opened.set()


def until_written(training: Checkpoints) -> None:
    assert training._aside is not None
    training._aside[0].wait()


def test_what_the_training_changes_meanwhile_does_not_reach_the_file(
    gate: Event, tmp_path: Path
) -> None:
    training = training_in(tmp_path)
    training.save(10)
    state_of(training).fill_(1.0)
    training.save(20, aside=True)
    state_of(training).fill_(2.0)
    assert found(tmp_path) == (10, [0.0] * 3)
    gate.set()
    until_written(training)
    assert training.is_due()
    assert found(tmp_path) == (20, [1.0] * 3)


def test_no_checkpoint_is_due_while_one_is_written(gate: Event, tmp_path: Path) -> None:
    training = training_in(tmp_path)
    training.save(20, aside=True)
    assert [training.is_due(), training.is_due()] == [False, False]
    assert names(tmp_path) == [".step_000020"]
    gate.set()
    until_written(training)
    assert training.is_due()
    assert names(tmp_path) == ["step_000020"]


def test_the_last_checkpoint_waits_for_the_one_that_is_written_and_for_itself(
    gate: Event, tmp_path: Path
) -> None:
    training = training_in(tmp_path)
    training.save(20, aside=True)
    Timer(0.05, gate.set).start()
    training.save(30)
    assert names(tmp_path) == ["step_000020", "step_000030"]


def test_what_is_written_is_deleted_too(gate: Event, tmp_path: Path) -> None:
    training = training_in(tmp_path)
    training.save(20, aside=True)
    Timer(0.05, gate.set).start()
    training.delete()
    assert gate.is_set()
    assert not tmp_path.exists()


@pytest.mark.parametrize("stage", ["half written", "written", "replaced"])
def test_a_training_that_is_killed_meanwhile_goes_on_from_the_checkpoint_before(
    stage: str, tmp_path: Path
) -> None:
    training_in(tmp_path).save(10)

    def train() -> None:
        training = training_in(tmp_path)
        training.restore()
        training.save(20, aside=True)
        until_written(training)
        training.is_due()

    crash(stage, tmp_path / "step_000020", train)
    assert found(tmp_path)[0] == (20 if stage == "replaced" else 10)
    training = training_in(tmp_path)
    training.save(training.restore() + 10)
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("ends", [lambda training: training.is_due(), lambda t: t.save(30)])
def test_a_file_that_cannot_be_written_ends_the_training_by_name(
    ends: Callable[[Checkpoints], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_bytes(path: Path, content: Any) -> int:
        raise DISK_IS_FULL

    training = training_in(tmp_path)
    training.save(10)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    training.save(20, aside=True)
    until_written(training)
    message = (
        rf"^{tmp_path}/step_000020 must be written whole by every rank, got OSError: "
        r"\[Errno 28\] No space left on device\. Make room on that disk"
    )
    with pytest.raises(OSError, match=message):
        ends(training)
    assert found(tmp_path)[0] == 10


@pytest.mark.parametrize("has_room", [True, False])
def test_a_rank_without_memory_has_all_write_at_once(
    has_room: bool, gate: Event, tmp_path: Path
) -> None:
    ranks = TwoRanks(rank=0, size=1, device=torch.device("cpu"), said=[has_room])
    training = training_in(tmp_path, ranks)
    training.save(20, aside=True)
    assert names(tmp_path) == [".step_000020" if has_room else "step_000020"]


@pytest.mark.parametrize(
    ("other", "ends"), [((False, ""), False), ((True, ""), True), ((True, "OSError: gone"), None)]
)
def test_a_checkpoint_gets_its_name_once_the_other_rank_has_written(
    other: tuple[bool, str], ends: bool | None, tmp_path: Path
) -> None:
    ranks = TwoRanks(rank=0, size=1, device=torch.device("cpu"), said=[True])
    training = training_in(tmp_path, ranks)
    training.save(20, aside=True)
    until_written(training)
    ranks.said[:] = [other]
    if ends is None:
        with pytest.raises(OSError, match="got OSError: gone"):
            training.is_due()
    else:
        assert training.is_due() is ends
    assert (tmp_path / "step_000020").exists() is bool(ends)


@pytest.mark.parametrize(
    ("num_bytes", "gib", "expected"),
    [
        (PROBE_BYTES, 10.0, False),
        (PROBE_BYTES + 1, 10.0, True),
        (2**30, 1.99, False),
        (2**30, 2.0, True),
    ],
)
def test_there_is_room_where_twice_the_state_is_left(
    num_bytes: int, gib: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_cost, "available_memory_gib", lambda: gib)
    assert checkpoint_cost.has_room(num_bytes, ONE_RANK) is expected


def test_the_interval_grows_with_the_copying_and_not_with_the_writing(
    gate: Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_in(tmp_path, interval_s=1e-9)
    # The copying takes 1 s, a twentieth of 20 s; the writing 15.
    clock = iter([100.0, 101.0, 116.0, 122.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    training.save(20, aside=True)
    gate.set()
    until_written(training)
    assert [training.is_due(), training.is_due()] == [False, True]
