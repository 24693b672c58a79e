"""How a rank's part of a batch is cut for its passes.

What is read together is padded to the longest row of it, so that rows of like length may be put
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rpa_ray.learner.ranks import Ranks
from rpa_ray.types import (
    BatchT,
    Experience,
    PairBatch,
    ReferencedPairBatch,
    micro_batches,
    num_rows,
    rows_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatches:
    """Cuts batches by rows, or by tokens with rows of like length together.

    There are as many parts on every rank, with as many rows: a sharded model reads each of them on
    all together. The sum of what the parts give does not depend on how they are cut.
    """

    ranks: Ranks
    max_rows: int
    max_tokens: int | None = None
    """Most tokens of a part, padding included; None cuts by rows alone and keeps their order."""

    def order(self, batch: BatchT) -> Int[Tensor, " batch"]:
        """Return the rows in the order in which they are to be cut."""
        lengths = row_lengths(batch)
        if self.max_tokens is None:
            return torch.arange(len(lengths), device=lengths.device)
        return longest_first(lengths)

    def cut(self, batch: BatchT) -> list[BatchT]:
        """Return the parts of a batch, in order; every rank calls it with as many rows."""
        if self.max_tokens is None:
            return micro_batches(batch, self.max_rows)
        rows = zip(*self.ranks.gather(row_lengths(batch).tolist()), strict=True)
        answers = 2 if isinstance(batch, PairBatch | ReferencedPairBatch) else 1
        sizes = sizes_within(
            [max(of_ranks) for of_ranks in rows],
            max_tokens=self.max_tokens // answers,
            max_rows=self.max_rows,
        )
        return trimmed_parts(batch, sizes)


def row_lengths(batch: BatchT) -> Int[Tensor, " batch"]:
    """Return how many tokens each row has, padding left out; a pair's are those of its longer."""
    match batch:
        case PairBatch() | ReferencedPairBatch():
            masks = [batch.chosen.attention_mask, batch.rejected.attention_mask]
        case Experience():
            masks = [batch.tokens.attention_mask]
        case _:
            masks = [batch.attention_mask]
    return torch.stack([mask.sum(dim=1) for mask in masks]).amax(dim=0)


def longest_first(lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the rows from the longest to the shortest, equal ones in their order."""
    return lengths.argsort(descending=True, stable=True)


def sizes_within(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> list[int]:
    """Return the numbers of rows of parts that follow each other, each as large as may be.

    A part of ``max_rows`` rows at most has ``max_tokens`` at most with its padding; a row that has
    more is a part.

    Example: lengths 6, 5, 2, 2, 2 within 12 tokens make parts of 2 and 3 rows.
    """
    sizes: list[int] = []
    widest = 0
    for length in lengths:
        widest = max(widest, length)
        if sizes and sizes[-1] < max_rows and (sizes[-1] + 1) * widest <= max_tokens:
            sizes[-1] += 1
        else:
            sizes.append(1)
            widest = length
    return sizes


def trimmed_parts(batch: BatchT, sizes: Sequence[int]) -> list[BatchT]:
    """Return parts of so many rows each, in order, each as wide as its longest row."""
    assert sum(sizes) == num_rows(batch)
    parts: list[BatchT] = []
    start = 0
    for part in torch.split(row_lengths(batch), list(sizes)):
        end = start + len(part)
        parts.append(rows_of(batch, slice(start, end), width=int(part.max())))
        start = end
    return parts
