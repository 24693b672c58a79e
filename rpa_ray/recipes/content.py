"""What lies under a local path, as a short key: other content at the same path is another model."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin")
_END_BYTES = 2**20
"""Of larger weights only the size and this much of their beginning and their end are read."""


def content_key(path: str | Path) -> str:
    """Return 16 hexadecimal digits for what a file or a folder holds; another name as it is.

    One that cannot be read is a name too: the checks before a start refuse it by its key.

    A training changes every part of a weights file, so that its ends tell two models apart without
    reading all of them. Names within a folder count, the folder's own does not.
    """
    root = Path(path)
    # False also for a name that no file system would take; a pipe has no end to read to.
    if not (os.path.isfile(root) or os.path.isdir(root)):
        return str(path)
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    stamps = []
    for file in files:
        name, status = str(file.relative_to(root)), file.stat()
        stamps.append((name, str(file), status.st_size, status.st_mtime_ns))
    try:
        return _key(tuple(stamps))
    except OSError:
        return str(path)


@lru_cache(maxsize=256)
def _key(stamps: tuple[tuple[str, str, int, int], ...]) -> str:
    """Return the key of files given as name, path, size in bytes, and time of change."""
    digest = hashlib.sha256()
    for name, path, num_bytes, _ in stamps:
        digest.update(f"{name}\0{num_bytes}\0".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_END_BYTES))
            if path.endswith(_WEIGHTS) and num_bytes > 2 * _END_BYTES:
                file.seek(-_END_BYTES, 2)
            while block := file.read(_END_BYTES):
                digest.update(block)
    return digest.hexdigest()[:16]
