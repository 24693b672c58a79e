"""Who works in a folder or needs it; a lock goes with its process, however that ends."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

_POLL_S = 0.5


class FolderInUse(RuntimeError):
    """Another process works in the folder."""


class NoLocks(RuntimeError):
    """The storage of the folder knows no locks."""


def exclusive(path: Path, *, wait_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` for the time of the block, waiting for it at most ``wait_s``.

    Raises:
        FolderInUse: Another process holds it, alone or shared.
        NoLocks: The storage knows no locks, as NFS without its lock service.
    """
    return _locked(path, fcntl.LOCK_EX, wait_s)


def shared(path: Path, *, wait_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold the lock file ``path`` as others may at the same time; else like `exclusive`.

    Raises:
        FolderInUse: Another process holds it alone.
    """
    return _locked(path, fcntl.LOCK_SH, wait_s)


@contextmanager
def _locked(path: Path, kind: int, wait_s: float) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FolderInUse(
                        f"{path.parent} must be used by one process at a time, got another that "
                        f"holds {path.name}. Wait until it ends, or name another folder."
                    ) from None
                time.sleep(_POLL_S)
            except OSError as error:
                raise NoLocks(
                    f"{path.parent} must lie on storage that locks files (flock), got "
                    f"{error.strerror}. Have it mounted with locks, or name another folder."
                ) from None
        yield
