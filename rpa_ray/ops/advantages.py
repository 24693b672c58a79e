"""From scores to advantages: token rewards, GAE, whitening, and group baselines.

Nothing here is differentiated. Rows may hold a prompt before the kept positions and padding after
them; both come out as 0, whatever they held.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpa_ray.ops.kl import kl_k1

WHITENING_EPS = 1e-8
GROUP_EPS = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageEstimate:
    """What GAE gives for each kept token; 0 elsewhere."""

    advantages: Float[Tensor, "batch seq"]
    returns: Float[Tensor, "batch seq"]
    """``advantages + values``: the critic's target."""


@torch.no_grad()
def token_rewards(
    scores: Float[Tensor, " batch"],
    policy_logprobs: Float[Tensor, "batch seq"],
    reference_logprobs: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    kl_coef: float,
) -> Float[Tensor, "batch seq"]:
    """Return ``-kl_coef * k1`` of each kept token, plus the row's score at its last one.

    The score of a row without any kept token has no place and is left out. Ours, because
    OpenRLHF's ``compute_reward`` puts that score on padding and is fed a clamped k1.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), eq. 2, as TRL 0.9.6 spreads it over tokens.
    """
    penalty = kl_coef * kl_k1(policy_logprobs, reference_logprobs)
    num_kept_from_here = mask.flip(-1).cumsum(dim=-1).flip(-1)
    is_last = mask & (num_kept_from_here == 1)
    return (is_last * scores[:, None] - penalty).masked_fill(~mask, 0.0)


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "batch seq"],
    values: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    gamma: float,
    gae_lambda: float,
) -> AdvantageEstimate:
    """Return generalised advantages; the state after the last kept token is worth 0.

    Args:
        rewards: Reward for producing the token at each position.
        values: The critic's value of the state before the token at each position.
        mask: Positions that were sampled; other positions are stepped over.
        gamma: Discount, in [0, 1].
        gae_lambda: Weight of longer returns, in [0, 1].

    Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16.
    """
    advantages = torch.zeros_like(values)
    next_value = values.new_zeros(values.shape[0])
    next_advantage = values.new_zeros(values.shape[0])
    for t in reversed(range(values.shape[1])):
        kept = mask[:, t]
        error = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = error + gamma * gae_lambda * next_advantage
        next_advantage = torch.where(kept, advantage, next_advantage)
        next_value = torch.where(kept, values[:, t], next_value)
        advantages[:, t] = advantage.masked_fill(~kept, 0.0)
    returns = advantages + values.masked_fill(~mask, 0.0)
    return AdvantageEstimate(advantages=advantages, returns=returns)


@torch.no_grad()
def whitening_sums(
    x: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "3"]:
    """Return count, sum and sum of squares of the kept positions, in fp64.

    The results of several ranks add up: all-reduce them, then call :func:`whiten_with`.
    """
    kept = x.double().masked_fill(~mask, 0.0)
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


@torch.no_grad()
def whiten_with(
    x: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], sums: Float[Tensor, "3"]
) -> Float[Tensor, "batch seq"]:
    """Return ``(x - mean) / sqrt(variance + 1e-8)`` with the moments that ``sums`` stand for.

    The variance is Bessel-corrected; with fewer than two kept positions it is taken as 0, so that
    a single token gets 0.
    """
    count, total, squares = sums.unbind()
    mean = total / count.clamp(min=1)
    # Cancellation can leave a constant x with a variance just below 0.
    variance = ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)
    whitened = (x.double() - mean) * torch.rsqrt(variance + WHITENING_EPS)
    return whitened.masked_fill(~mask, 0.0).to(x.dtype)


def whiten(
    x: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return the kept positions with mean 0 and variance 1, of this batch alone."""
    return whiten_with(x, mask, whitening_sums(x, mask))


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAdvantages:
    """Rewards against the other completions of the same prompt."""

    advantages: Float[Tensor, " batch"]
    stds: Float[Tensor, " groups"]
    """Standard deviation of the rewards of each group, over n - 1; 0 below two rewards."""


@torch.no_grad()
def group_advantages(
    rewards: Float[Tensor, " batch"],
    group_size: int,
    *,
    kept: Bool[Tensor, " batch"] | None = None,
    scale: bool = True,
) -> GroupAdvantages:
    """Return ``(r - mean) / (std + 1e-4)`` of each reward within its own group.

    Args:
        rewards: One reward a completion; the completions of one prompt stand together.
        group_size: Completions of one prompt, at least 2. The standard deviation is over n - 1.
        kept: Completions that count, None for all; the others get 0 and touch no mean.
        scale: False leaves out the division, as Dr. GRPO does (Liu et al. 2025, arXiv:2503.20783).

    Raises:
        ValueError: If the group size is below 2 or does not divide the number of rewards.

    Source: Shao et al. 2024 (arXiv:2402.03300), section 4.1.2; the 1e-4 as in TRL.
    """
    if group_size < 2 or rewards.shape[0] % group_size:
        raise ValueError(
            f"group_size must be at least 2 and divide {rewards.shape[0]} rewards, "
            f"got {group_size}. Keep all completions of a prompt on one rank."
        )
    # fp64: the rounding error of an fp32 mean, over 1e-4, would give equal rewards an advantage.
    grouped = rewards.double().view(-1, group_size)  # [groups, group]
    mask = torch.ones_like(grouped, dtype=torch.bool) if kept is None else kept.view_as(grouped)
    count = mask.sum(dim=1, keepdim=True)
    mean = grouped.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    centred = (grouped - mean).masked_fill(~mask, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    std = variance.sqrt()
    advantages = centred / (std + GROUP_EPS) if scale else centred
    return GroupAdvantages(
        advantages=advantages.view(-1).to(rewards.dtype), stds=std.view(-1).to(rewards.dtype)
    )
