"""One process at a time in a folder; the lock goes with the process, however it ends."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.5


class FolderInUse(RuntimeError):
    """Another process works in the folder."""


@contextmanager
def exclusive(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path`` for the time of the block, waiting for it at most ``wait_s``.

    Raises:
        FolderInUse: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FolderInUse(
                        f"{path.parent} must be used by one process at a time, got another that "
                        f"holds {path.name}. Wait until it ends, or name another folder."
                    ) from None
                time.sleep(_POLL_S)
        yield
