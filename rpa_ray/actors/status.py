"""Where a worker lives, so that its last words can be found after its death."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """One worker process."""

    node: str
    pid: int
    log_path: str | None
    """File on its node that its error output goes to; None where that cannot be told."""


def own_status() -> WorkerStatus:
    """Return the status of this process."""
    return WorkerStatus(node=platform.node(), pid=os.getpid(), log_path=_error_output_path())


def _error_output_path() -> str | None:
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return None
    return path if Path(path).is_file() else None
