"""Cuts texts into right-padded batches of similar length and puts the results back in order."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

logger = logging.getLogger(__name__)


def in_batches(
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    pad_token_id: int,
    compute: Callable[[Tensor, Tensor, list[int]], list[T]],
) -> list[T]:
    """Return ``compute(input_ids, attention_mask, row numbers)`` of every row, in row order.

    Rows of similar length share a batch, so that little of it is padding.
    """
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    results: dict[int, T] = {}
    for chunk in _chunks(by_length, batch_size):
        input_ids, attention_mask = right_padded([rows[row] for row in chunk], pad_token_id)
        results |= zip(chunk, compute(input_ids, attention_mask, chunk), strict=True)
    return [results[row] for row in range(len(rows))]


def right_padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both [batch, seq], padded on the right."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask


def cut_to(rows: Sequence[Sequence[int]], max_length: int) -> list[Sequence[int]]:
    """Return the rows cut on the right to ``max_length`` tokens; warns with their number."""
    num_cut = sum(len(row) > max_length for row in rows)
    if num_cut:
        logger.warning("%d of %d texts were cut to %d tokens", num_cut, len(rows), max_length)
    return [row[:max_length] for row in rows]


def check_template(template: str) -> None:
    """Refuse a template that does not hold a prompt and an answer once each.

    Raises:
        ValueError: If ``{answer}`` is not there exactly once.
    """
    if template.count("{answer}") != 1:
        raise ValueError(f"template must contain {{answer}} once, got {template!r}. Add it.")


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
