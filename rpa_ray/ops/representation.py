"""What offline and online defences do to the representations of unsafe text."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_KERNELS = 5
_TINY = 1e-12
"""Keeps the kernel width of vectors that are all the same above 0."""


def gaussian_mmd(
    features: Float[Tensor, "batch features"], noise: Float[Tensor, "batch features"]
) -> Float[Tensor, ""]:
    """Return the squared maximum mean discrepancy of two samples of equal size, in fp32.

    The biased estimator over five Gaussian kernels, whose widths are 1/4 to 4 times the mean
    squared distance between two different ones of all vectors; no gradient goes through the width.
    It is between 0 and 10 and depends on the size of the sample: two samples of the same
    distribution in many dimensions are about 6.2 / batch apart.

    Source: RepNoise, Rosati et al. 2024 (arXiv:2405.14577) and its code; distances by
    ``|u - v|^2 = uu + vv - 2uv``, which needs no tensor of all differences.
    """
    both = torch.cat([features, noise]).float()
    # From the mean: the same distances with less to cancel.
    both = both - both.detach().mean(dim=0)
    squares = both.square().sum(dim=1)
    # [2 batch, 2 batch]
    distances = (squares[:, None] + squares[None, :] - 2 * both @ both.T).clamp(min=0.0)
    num = both.shape[0]
    width = distances.detach().sum().div(num**2 - num).clamp(min=_TINY)
    scales = [2.0 ** (i - NUM_KERNELS // 2) for i in range(NUM_KERNELS)]
    kernels = torch.stack([(-distances / (width * scale)).exp() for scale in scales]).sum(dim=0)
    # Each sample is half of the rows: + within a sample, - between the two.
    signs = torch.ones(num, device=both.device)
    signs[num // 2 :] = -1.0
    return signs @ kernels @ signs / (num // 2) ** 2


def kept_vectors(
    states: Float[Tensor, "batch seq width"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch features"]:
    """Return each row as one vector of ``seq * width`` in fp32, 0 where the mask is False."""
    return states.float().masked_fill(~mask[:, :, None], 0.0).flatten(1)


def prompt_ends(
    loss_mask: Bool[Tensor, "batch seq"], attention_mask: Bool[Tensor, "batch seq"]
) -> Int[Tensor, " batch"]:
    """Return the position before the first marked token of right-padded rows.

    Of a row without a marked token it is that of the last token.
    """
    first_marked = loss_mask.int().argmax(dim=-1)
    length = attention_mask.sum(dim=-1)
    return torch.where(loss_mask.any(dim=-1), first_marked, length) - 1


def mean_level(final: Float[Tensor, ""], by_layer: Float[Tensor, " layers"]) -> Float[Tensor, ""]:
    """Return ``A = 1 + (CE_final + sum_j CE_j) / (L + 1)`` of cross-entropies in nats.

    ``by_layer`` holds those of the L + 1 hidden states read by the output head. A is at least 1, so
    that ``-log A`` is bounded from above, and its gradient is ``-grad(A) / A``.

    Source: the code of Rosati et al. 2024 (arXiv:2405.14577), where the last layer counts twice.
    """
    return 1 + (final + by_layer.sum()) / by_layer.shape[0]


def differing_positions(
    one: Int[Tensor, "batch seq"], other: Int[Tensor, "batch seq"]
) -> Bool[Tensor, "batch seq"]:
    """Return where two batches of token ids differ, position by position, save the first position.

    Text against padding differs; what both answers have at the same place is left out.

    Source: the mask of the code of Rosati et al. 2024 (arXiv:2405.14577).
    """
    differs = one != other
    differs[:, 0] = False
    return differs
