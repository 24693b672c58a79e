"""Batches from rows that are known before training starts."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from rpa_ray.learner.ranks import Ranks
from rpa_ray.types import Batch, Metrics, on_device

RowT = TypeVar("RowT")
BatchT = TypeVar("BatchT", bound=Batch)


class DatasetSource(Generic[RowT, BatchT]):
    """Endless shuffled passes over rows; each global batch is cut into one part a rank.

    A pass visits every row once, save the last few where the batches do not divide it. The order
    depends on seed and pass alone, so a batch is found again by its number: the number of batches
    drawn is the whole state. Where rows change from pass to pass, ``vary`` makes one from the row
    that is known, its index and the number of the pass, and from nothing else.
    """

    def __init__(
        self,
        rows: Sequence[RowT],
        collate: Callable[[Sequence[RowT]], BatchT],
        *,
        batch_size: int,
        seed: int,
        ranks: Ranks,
        vary: Callable[[RowT, int, int], RowT] | None = None,
    ) -> None:
        if len(rows) < batch_size:
            raise ValueError(
                f"batch_size must be at most the number of rows ({len(rows)}), got {batch_size}. "
                "Take a smaller batch or more data."
            )
        self._rows = rows
        self._collate = collate
        self._batch_size = batch_size
        self._seed = seed
        self._ranks = ranks
        self._vary = vary
        self._num_batches = 0

    @property
    def num_rows(self) -> int:
        """Return how many rows there are to draw from."""
        return len(self._rows)

    def next_batch(self, step: int) -> tuple[BatchT, Metrics]:
        """Return this rank's part of batch number ``step``; nothing is measured."""
        per_pass = len(self._rows) // self._batch_size
        number, place = divmod(step, per_pass)
        order = np.random.default_rng([self._seed, number]).permutation(len(self._rows))
        chosen = order[place * self._batch_size : (place + 1) * self._batch_size].tolist()
        rows = [self._row(i, number) for i in self._ranks.part(chosen)]
        return on_device(self._collate(rows), self._ranks.device), {}

    def _row(self, index: int, number: int) -> RowT:
        row = self._rows[index]
        return row if self._vary is None else self._vary(row, index, number)

    def __call__(self) -> BatchT:
        """Return the next batch in line."""
        batch, _ = self.next_batch(self._num_batches)
        self._num_batches += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches were drawn in line."""
        return {"num_batches": self._num_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches drawn before."""
        self._num_batches = state["num_batches"]
