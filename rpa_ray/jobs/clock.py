"""How long an experiment took, over every process that worked on it."""

import time
from collections.abc import Mapping


class Clock:
    """How long an experiment took, the processes before this one up to their last save included."""

    def __init__(self) -> None:
        self._earlier_s = 0.0
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._earlier_s + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Count on from what an earlier process had counted."""
        self._earlier_s = state["seconds"]
