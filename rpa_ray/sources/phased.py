"""Two sources one after the other: an attacker who fine-tunes first and then goes on by RL."""

from typing import Any

from rpa_ray.loop import Source
from rpa_ray.types import Metrics


class PhasedSource:
    """Takes its first batches from one source and all later ones from another."""

    def __init__(self, first: Source, num_first: int, second: Source) -> None:
        self._first = first
        self._num_first = num_first
        self._second = second

    def next_batch(self, step: int) -> tuple[Any, Metrics]:
        """Return batch ``step``; each source counts its own batches from 0."""
        if step < self._num_first:
            return self._first.next_batch(step)
        return self._second.next_batch(step - self._num_first)
