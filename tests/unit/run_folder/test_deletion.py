import errno
import os
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.run_folder.deletion import delete


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of checkpoints, one whole and one cut short."""
    found = tmp_path / "checkpoints"
    for name in ("step_000040", ".step_000080"):
        (found / name / "engine").mkdir(parents=True)
        (found / name / "engine" / "weights.pt").write_text("weights")
        (found / name / "rank_0.pt").write_text("state")
    return found


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a name of which no file can be deleted."""
    unlink = os.unlink

    def unlink_others(path: Any, *args: Any, **kwargs: Any) -> None:
        if os.path.basename(path) == "weights.pt":
            raise OSError(errno.EACCES, "not to be deleted")
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink_others)
    return "weights.pt"


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_gone(folder: Path) -> None:
    assert delete(folder) is None
    assert not folder.exists()


def test_a_file_and_a_link_to_nothing_are_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("left by a file system")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert delete(tmp_path / "file") is None
    assert delete(tmp_path / "link") is None
    assert delete(tmp_path / "never there") is None
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoints_behind_a_link_are_gone_and_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "thesis.txt").write_text("of the same disk")
    (folder / "other_run" / "step_000040").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert delete(link) is None
    assert sorted(path.name for path in link.iterdir()) == ["other_run", "thesis.txt"]
    assert (folder / "other_run" / "step_000040").is_dir()


def test_what_cannot_be_deleted_is_named_and_all_else_is_gone(
    folder: Path, tmp_path: Path, stuck: str
) -> None:
    (tmp_path / "link").symlink_to(folder)
    left = [f".step_000080/engine/{stuck}", f"step_000040/engine/{stuck}"]
    assert delete(tmp_path / "link") == folder
    assert files_in(folder) == left
    assert delete(folder) == folder
    assert files_in(folder) == left
    assert delete(folder / left[0]) == folder / left[0]


def test_a_folder_that_cannot_be_read_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "not to be read")

    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert delete(tmp_path / "link") == folder
