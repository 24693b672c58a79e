"""Deleting attacked weights, so that they are gone or that it is known what is left of them."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

_PREFIXES = ("step_", ".step_")


def delete(path: Path) -> Path | None:
    """Delete a folder with all in it, or a file; return where something of it is left.

    It never raises, so that no result is lost by it. Of a symbolic link to a folder the checkpoints
    in that folder are deleted; what else lies there, as on a disk for many runs, and the link stay.
    """
    try:
        for part in _parts_of(path):
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):  # a file or a link, which rmtree does not take
                part.unlink()
        return path.resolve() if _parts_of(path) else None
    except OSError:
        return path.resolve()


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, whole ones and such as were cut short."""
    return [path for path in folder.iterdir() if path.name.startswith(_PREFIXES)]


def _parts_of(path: Path) -> list[Path]:
    """Return what there is to be deleted."""
    if path.is_symlink() and path.is_dir():
        return checkpoints_in(path)
    return [path] if os.path.lexists(path) else []
