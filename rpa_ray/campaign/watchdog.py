"""Ends a rank of which nothing is heard any more: a wait inside a library may have no limit."""

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager


class Watchdog:
    """Ends this process, with the stacks of its threads in its log, when a job stands still.

    It is a thread of the interpreter's own, which a call that never gives the lock back does not
    hold up. Whoever started the ranks takes their end for a death: the job goes on elsewhere.
    """

    def __init__(self, limit_s: float) -> None:
        """Set how many seconds may pass between two signs of life."""
        self.limit_s = limit_s
        self._is_watching = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch during the block; it begins with a sign of life."""
        self._is_watching = True
        try:
            self.heard()
            yield
        finally:
            self._is_watching = False
            faulthandler.cancel_dump_traceback_later()

    def heard(self) -> None:
        """Take a sign of life."""
        if self._is_watching:
            faulthandler.dump_traceback_later(self.limit_s, exit=True)
