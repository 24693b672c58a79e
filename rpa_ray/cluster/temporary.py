"""Where the files of a cluster of our own lie: its sockets have to have short paths."""

import os
import tempfile
from pathlib import Path

from rpa_ray.config import ConfigError

MAX_SOCKET_BYTES = 107
"""Of the path of a Unix socket, as Linux takes it."""
PREFIX = "rpa-ray-"
RAY_FOLDER = "ray"
_BELOW = f"/{PREFIX}12345678/{RAY_FOLDER}/session_2026-01-31_12-00-00_000000_4194304"
MAX_FOLDER_BYTES = MAX_SOCKET_BYTES - len(f"{_BELOW}/sockets/plasma_store")
"""Of the folder in which ours is made: Ray puts a session and its sockets below."""
SHORT_FOLDERS = ("/tmp", "/var/tmp")  # noqa: S108 - a folder of a random name is made in them


def folder_for_ray() -> str:
    """Return the folder in which that of a cluster is made.

    That is RAY_TMPDIR; else TMPDIR, or, where its path is too long, ``/tmp``.

    Raises:
        ConfigError: RAY_TMPDIR is too long or cannot be written, or no short folder can be.
    """
    named = os.environ.get("RAY_TMPDIR")
    usual = tempfile.gettempdir()
    candidates = [os.path.abspath(named)] if named else [usual, *SHORT_FOLDERS]
    short = [folder for folder in candidates if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES]
    for folder in short:
        if Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    if short and named:
        rule, value = "name a folder that can be written", named
    else:
        value = f"{candidates[0]} ({len(os.fsencode(candidates[0]))} bytes)"
        rule = (
            f"name a folder whose path has at most {MAX_FOLDER_BYTES} bytes, since those of the "
            f"sockets in it may have {MAX_SOCKET_BYTES}"
        )
    raise ConfigError(
        "RAY_TMPDIR" if named else "TMPDIR",
        rule,
        value,
        "Set RAY_TMPDIR to a short one that you can write, such as /tmp.",
    )
