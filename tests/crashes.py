"""Writers that die half-way: processes of their own that end without a word at a chosen stage."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ray import cloudpickle

from rpa_ray.run_folder import files

STAGES = ("not begun", "half written", "written", "replaced")
DELETING = "about to delete what was there"
_DEAD = 86
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch", "pyarrow.parquet", "rpa_ray.run_folder.files"])


def crash(stage: str, path: Path, write: Callable[[], None]) -> None:
    """Write ``path`` in a process that dies at a stage; what it leaves is left.

    It is forked from a lean one: this one may hold more memory than can be promised twice.
    """
    pickled: bytes = cloudpickle.dumps(write)  # type: ignore[no-untyped-call]
    child = _PROCESSES.Process(target=_write, args=(stage, path, pickled))
    child.start()
    child.join()
    assert child.exitcode == _DEAD, f"it never came to be {stage}"


def _write(stage: str, path: Path, write: bytes) -> None:
    _die_at(stage, path)
    pickle.loads(write)()


def _die_at(stage: str, path: Path) -> None:
    """Prepare this process for its end; nobody undoes it."""
    replace = os.replace

    def at_replace(old: Any, new: Any) -> None:
        if Path(new) == path and stage == "written":
            _die()
        replace(old, new)
        if Path(new) == path:
            _die()

    def at_sync(handle: int) -> None:
        # By its name: a folder's files are opened to be read.
        os.truncate(f"/proc/self/fd/{handle}", os.fstat(handle).st_size // 2)
        _die()

    patch = pytest.MonkeyPatch()
    patch.setattr(os, "replace", at_replace)
    if stage == "half written":
        patch.setattr(os, "fsync", at_sync)
    if stage == "not begun":
        patch.setattr(files, "token_hex", _die)
    if stage == DELETING:
        patch.setattr(os, "unlink", _die)


def _die(*_: object, **__: object) -> NoReturn:
    os._exit(_DEAD)
