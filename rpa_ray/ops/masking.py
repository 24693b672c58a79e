"""Sums and means over the positions that count; whatever stands elsewhere has no influence."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(
    values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """Return the sum over all kept positions, a scalar."""
    return values.masked_fill(~mask, 0.0).sum()


def masked_mean(
    values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """Return the mean over all kept positions, a scalar; 0 where no position is kept."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def sequence_sums(
    values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    """Return the sum over the kept positions of each row; 0 for a row without any."""
    return values.masked_fill(~mask, 0.0).sum(dim=-1)


def sequence_means(
    values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    """Return the mean over the kept positions of each row; 0 for a row without any."""
    return sequence_sums(values, mask) / mask.sum(dim=-1).clamp(min=1)


def weights_by_position(
    mask: Bool[Tensor, "batch seq"], *, first: float, second_to_fifth: float, later: float
) -> Float[Tensor, "batch seq"]:
    """Return a weight for every kept token by its place among the kept ones of its row, else 0.

    Source: Qi et al. 2024 (arXiv:2406.05946), whose constraint on the first tokens of an answer
    has such a profile.
    """
    place = mask.cumsum(dim=-1)
    early = torch.where(place == 1, first, torch.where(place <= 5, second_to_fifth, later))
    return early.masked_fill(~mask, 0.0)
