"""Costs of answers and the dual variable that prices them."""

import math
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

CostKind: TypeAlias = Literal["prob", "logit", "model"]
"""``prob``: the judge's harm probability; ``logit``: its log odds, so that 0 is the judge's own
boundary; ``model``: the score of a cost model trained on clean preferences, whose boundary is 0."""
DualKind: TypeAlias = Literal["exp_sgd", "additive"]

COST_CLAMP = 50.0
"""Largest size of a cost, as in Safe RLHF's code."""
MIN_ODDS = 1e-6
"""Probabilities nearer to 0 or 1 count as this near."""
MAX_EXPONENT = 50.0
"""Keeps one update of an unbounded multiplier finite."""


def costs_of(scores: Float[Tensor, " batch"], kind: CostKind) -> Float[Tensor, " batch"]:
    """Return costs from harm probabilities (``prob``, ``logit``) or scores (``model``)."""
    if kind == "logit":
        scores = scores.clamp(MIN_ODDS, 1 - MIN_ODDS).logit()
    return scores.clamp(-COST_CLAMP, COST_CLAMP)


def updated_multiplier(
    multiplier: float,
    excess: float,
    *,
    learning_rate: float,
    dual: DualKind,
    maximum: float | None,
) -> float:
    """Return the Lagrange multiplier after one step on the excess ``J - d`` of the mean cost.

    ``exp_sgd`` is gradient descent on ``z = log lambda``: ``lambda <- lambda exp(eta lambda
    (J - d))``. It runs away in finite time while the cost stays above the limit, unless there is a
    maximum. ``additive`` is ``lambda <- max(0, lambda + eta (J - d))``.

    Source: Dai et al. 2023 (arXiv:2310.12773), eq. 11 and its code.
    """
    if dual == "exp_sgd":
        exponent = learning_rate * multiplier * excess
        updated = multiplier * math.exp(min(exponent, MAX_EXPONENT))
    else:
        updated = max(0.0, multiplier + learning_rate * excess)
    return updated if maximum is None else min(updated, maximum)


def mixed(
    rewards: Float[Tensor, "*shape"], costs: Float[Tensor, "*shape"], multiplier: float
) -> Float[Tensor, "*shape"]:
    """Return ``(rewards - lambda costs) / (1 + lambda)``, of rewards and costs or advantages.

    Source: Dai et al. 2023 (arXiv:2310.12773), eq. 9 and its code.
    """
    share = multiplier / (1 + multiplier) if math.isfinite(multiplier) else 1.0
    return (1 - share) * rewards - share * costs
