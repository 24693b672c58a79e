"""Sums and means over the positions that count; whatever stands elsewhere has no influence."""

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
