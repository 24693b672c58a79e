"""KL divergences of the policy from a reference, and the controllers of their coefficient.

Ours, not OpenRLHF's ``compute_approx_kl``: that one clamps every estimate to +-10 nats, which
hides exactly the large drifts that an attack causes.
"""

from collections.abc import Mapping
from math import isfinite

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpa_ray.ops.logprobs import in_slices
from rpa_ray.ops.openrlhf import openrlhf_kl_controllers

MAX_LOG_RATIO = 20.0
"""Nats; exp(20) is 5e8, far beyond any useful ratio and far from overflow."""


def kl_k1(
    policy_logprobs: Float[Tensor, "batch seq"], reference_logprobs: Float[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return ``log pi - log pi_ref`` of each sampled token: unbiased, may be negative.

    Source: Schulman 2020, Approximating KL divergence, estimator k1.
    """
    return policy_logprobs - reference_logprobs


def kl_k3(
    policy_logprobs: Float[Tensor, "batch seq"], reference_logprobs: Float[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return ``exp(q - p) - (q - p) - 1`` of each sampled token, p policy and q reference, >= 0.

    Differentiable in the policy. ``q - p`` is cut at 20 nats before exp; beyond, the gradient is 0.

    Source: Schulman 2020, estimator k3; the KL term of GRPO, Shao et al. 2024
    (arXiv:2402.03300), eq. 4.
    """
    log_ratio = (reference_logprobs - policy_logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def kl_full(
    policy_logits: Float[Tensor, "batch seq vocab"],
    reference_logits: Float[Tensor, "batch seq vocab"],
) -> Float[Tensor, "batch seq"]:
    """Return KL(policy || reference) over the whole vocabulary at each position, in nats, >= 0.

    Exact, so its variance is only that of the sampled text. Exactly 0 for equal logits.
    """
    return in_slices(_kl_full, policy_logits, reference_logits)


def _kl_full(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    policy = F.log_softmax(policy_logits.float(), dim=-1)
    reference = F.log_softmax(reference_logits.float(), dim=-1)
    divergence = (policy.exp() * (policy - reference)).sum(dim=-1)
    # Rounding alone can give -1e-8.
    return divergence.clamp(min=0.0)


def kl_of_frozen(
    policy_logits: Float[Tensor, "*rows vocab"], frozen_logits: Float[Tensor, "*rows vocab"]
) -> Float[Tensor, " *rows"]:
    """Return KL(frozen || policy) over the whole vocabulary of each row, in nats.

    Differentiable in the policy. The gradient in its logits is formed as ``p - p_frozen``: exactly
    0 for equal logits, where that of ``log_softmax`` is rounding noise.
    """
    logits = policy_logits.float()
    policy = F.log_softmax(logits.detach(), dim=-1)
    frozen = F.log_softmax(frozen_logits.detach().float(), dim=-1)
    divergence = (frozen.exp() * (frozen - policy)).sum(dim=-1)
    with_gradient = ((policy.exp() - frozen.exp()) * logits).sum(dim=-1)
    return divergence + (with_gradient - with_gradient.detach())


class AdaptiveKL:
    """A KL coefficient that moves towards a target divergence.

    ``k <- k * (1 + clip(kl / target - 1, -0.2, 0.2) * num_samples / horizon)`` after each batch.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2; computed by OpenRLHF's
    AdaptiveKLController.
    """

    def __init__(self, kl_coef: float, *, target: float, horizon: int) -> None:
        self._controller = openrlhf_kl_controllers().AdaptiveKLController(kl_coef, target, horizon)

    @property
    def value(self) -> float:
        """Return the coefficient that the next batch is penalised with."""
        return float(self._controller.value)

    def update(self, kl: float, num_samples: int) -> None:
        """Move the coefficient after a batch.

        Args:
            kl: Batch mean of the sequence-summed k1 estimate, in nats.
            num_samples: Rows of the global batch.

        Raises:
            ValueError: If ``kl`` is not finite; it would spoil every later coefficient.
        """
        if not isfinite(kl):
            raise ValueError(
                f"kl must be finite, got {kl}. Do not update the controller with a broken batch."
            )
        self._controller.update(kl, num_samples)

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._controller.value = state["value"]


class FixedKL:
    """A KL coefficient that never moves."""

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, kl: float, num_samples: int) -> None:
        """Leave the coefficient as it is."""

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.value = state["value"]
