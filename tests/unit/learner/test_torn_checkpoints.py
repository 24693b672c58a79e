"""Which checkpoint a training goes on from after a crash, and which it must not touch."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import STAGES, crash
from fakes import ONE_RANK

from rpa_ray.config import ConfigError
from rpa_ray.learner.checkpoints import Checkpoints, latest_checkpoint


class OneFile:
    """An engine whose state is a number in a file."""

    zero_stage = 1
    module = torch.nn.Identity()

    def __init__(self, state: int = 0) -> None:
        self.state = state

    def save(self, folder: Path, write: Callable[[Any, str], None]) -> None:
        (folder / "state").mkdir(parents=True)
        write({"state": self.state}, str(folder / "state" / "engine.pt"))

    def load(self, folder: Path) -> None:
        self.state = torch.load(folder / "state" / "engine.pt", weights_only=True)["state"]


def checkpoints(folder: Path, state: int = 0) -> Checkpoints:
    engine: Any = OneFile(state)
    return Checkpoints(folder, ranks=ONE_RANK, engine=engine, parts={}, interval_s=0.0)


def saved(folder: Path, *steps: int) -> None:
    """Save at steps, the engine's state being the step."""
    training = checkpoints(folder)
    training.restore()
    for step in steps:
        training._engine.state = step  # type: ignore[attr-defined]
        training.save(step)


def found(folder: Path) -> tuple[int, int]:
    """Return from which step a training goes on, and with which state."""
    training = checkpoints(folder)
    return training.restore(), training._engine.state  # type: ignore[attr-defined]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TouchesAFile:
    """A pickle of it runs code where it is read without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_goes_on_from_the_checkpoint_before_until_the_new_one_is_whole(
    stage: str, tmp_path: Path
) -> None:
    saved(tmp_path, 10)
    crash(stage, tmp_path / "step_000020", lambda: saved(tmp_path, 20))
    expected = 20 if stage == "replaced" else 10
    assert found(tmp_path) == (expected, expected)
    saved(tmp_path, 30)
    assert names(tmp_path) == [f"step_0000{expected}", "step_000030"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_first_checkpoint_is_there_once_it_is_whole(stage: str, tmp_path: Path) -> None:
    crash(stage, tmp_path / "step_000020", lambda: saved(tmp_path, 20))
    assert found(tmp_path) == ((20, 20) if stage == "replaced" else (0, 0))


@pytest.mark.parametrize("file", ["engine/state/engine.pt", "rank_0.pt", "ranks.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_a_torn_newest_checkpoint_is_named_and_the_one_before_counts(
    file: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 10, 20)
    path = tmp_path / "step_000020" / file
    size = path.stat().st_size
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else size // 2)
    assert found(tmp_path) == (10, 10)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000010"
    (line,) = caplog.messages
    assert line.startswith(f"{path} must be as it was written") and "\n" not in line
    saved(tmp_path, 15)
    assert names(tmp_path) == ["step_000010", "step_000015"]


def test_a_torn_checkpoint_without_another_is_a_start_from_the_beginning(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    os.truncate(tmp_path / "step_000010" / "rank_0.pt", 3)
    assert found(tmp_path) == (0, 0)


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    saved(tmp_path, 999_999, 1_000_000)
    assert names(tmp_path) == ["step_1000000", "step_999999"]
    assert found(tmp_path) == (1_000_000, 1_000_000)


@pytest.mark.parametrize("name", ["step_zzz", "step_", "step_9", ".step_000099", "step_000099.old"])
def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 10)
    (tmp_path / name).mkdir()
    assert found(tmp_path) == (10, 10)


def test_all_of_a_checkpoint_is_on_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync, replace = os.fsync, os.replace

    def told_sync(handle: int) -> None:
        sync(handle)
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))

    def told_replace(old: Path, new: Path) -> None:
        if Path(new).name == "step_000010":
            inside = {str(path) for path in Path(old).rglob("*")}
            assert {*inside, str(old)} <= set(synced)
            synced.clear()
        replace(old, new)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(os, "replace", told_replace)
    saved(tmp_path, 10)
    assert synced == [str(tmp_path)]


@pytest.mark.parametrize("file", ["engine/state/engine.pt", "rank_0.pt"])
def test_a_planted_pickle_is_not_run_and_its_folder_is_named(file: str, tmp_path: Path) -> None:
    saved(tmp_path, 10, 999_999)
    planted, touched = tmp_path / "step_999999", tmp_path / "touched"
    evil = pickle.dumps({"state": TouchesAFile(touched)}, protocol=2)
    size = (planted / file).stat().st_size
    (planted / file).write_bytes(evil.ljust(size, b"\0"))
    with pytest.raises(ConfigError, match=rf"^{planted} must hold tensors and plain values alone"):
        found(tmp_path)
    assert not touched.exists()


def test_a_planted_pickle_alone_is_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 10)
    planted = tmp_path / "step_999999" / "engine" / "state" / "engine.pt"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(pickle.dumps(TouchesAFile(tmp_path / "touched"), protocol=2))
    assert found(tmp_path) == (10, 10)
    assert not (tmp_path / "touched").exists()
    assert str(tmp_path / "step_999999") in caplog.text


def link_to_another(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.parent / "elsewhere")
    checkpoint.symlink_to(checkpoint.parent / "elsewhere")


def link_inside(checkpoint: Path) -> None:
    (checkpoint / "rank_0.pt").rename(checkpoint.parent / "elsewhere")
    (checkpoint / "rank_0.pt").symlink_to(checkpoint.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (link_to_another, "'a symbolic link'"),
        (link_inside, "'a symbolic link'"),
        (lambda checkpoint: checkpoint.chmod(0o770), "'mode drwxrwx---'"),
        (lambda checkpoint: (checkpoint / "rank_0.pt").chmod(0o606), "'mode -rw----rw-'"),
    ],
)
def test_a_checkpoint_that_others_could_have_written_is_refused(
    spoil: Any, got: str, tmp_path: Path
) -> None:
    saved(tmp_path, 10, 20)
    spoil(tmp_path / "step_000020")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/step_000020.* must be of uid .*") as error:
        found(tmp_path)
    assert got in str(error.value)


def test_a_checkpoint_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 10)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(ConfigError, match=rf"must be of uid {uid + 1}, .*, got 'one of uid {uid}'"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_checkpoint_is_closed_to_others_and_read_again_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        saved(tmp_path, 10)
    finally:
        os.umask(before)
    checkpoint = tmp_path / "step_000010"
    assert all(path.stat().st_mode & 0o077 == 0 for path in [checkpoint, *checkpoint.rglob("*")])
    assert found(tmp_path) == (10, 10)


def test_a_checkpoint_from_before_sizes_were_written_is_gone_on_from(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    (tmp_path / "step_000010" / "ranks.json").write_text('{"num_ranks": 1, "zero_stage": 1}')
    assert found(tmp_path) == (10, 10)


def test_a_checkpoint_that_was_just_written_is_not_written_again(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    written = (tmp_path / "step_000010" / "rank_0.pt").stat().st_mtime_ns
    saved(tmp_path, 10)
    assert (tmp_path / "step_000010" / "rank_0.pt").stat().st_mtime_ns == written
