"""How two gradients stand to each other, from the parts that the ranks own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Angle:
    """The norms of two gradients and the cosine between them."""

    first_norm: float
    second_norm: float
    cosine: float
    """-1 to 1; 0 where one of the two is 0."""


def inner_products(
    first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
) -> Float[Tensor, " products"]:
    """Return ``first.first``, ``second.second`` and ``first.second``: float64, where they are.

    The products of parts add up to those of the whole.
    """
    one, other = first.double().flatten(), second.double().flatten()
    return torch.stack([one @ one, other @ other, one @ other])


def rows_of(products: Sequence[Float[Tensor, " products"]]) -> Float[Tensor, "parts products"]:
    """Return the :func:`inner_products` of parts, on the CPU: a device is waited for once."""
    return torch.stack([*products]).cpu() if products else torch.zeros(0, 3, dtype=torch.float64)


def angle_of(products: Float[Tensor, " products"]) -> Angle:
    """Return what the sum of all parts' :func:`inner_products` says."""
    first, second, mixed = products.tolist()
    size = math.sqrt(first) * math.sqrt(second)
    return Angle(
        first_norm=math.sqrt(first),
        second_norm=math.sqrt(second),
        cosine=mixed / size if size > 0 else 0.0,
    )
