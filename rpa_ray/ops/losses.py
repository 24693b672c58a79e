"""Losses of one rank's part of a batch.

Each is the part's sum, divided by the whole step's count of tokens (or pairs, or rows) and
multiplied by the number of ranks: the engine averages gradients over ranks, so that what remains is
the mean over the global batch however it was split: the parts of all micro-batches and ranks add
up to it. Whatever stands at masked positions, NaN included, has neither value nor gradient. Counts
are at least 1: a step without a single term has loss 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rpa_ray.ops.kl import MAX_LOG_RATIO, kl_k3
from rpa_ray.ops.masking import masked_mean, masked_sum
from rpa_ray.ops.openrlhf import openrlhf_losses

MAX_MEAN_RATIO = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss:
    """The clipped surrogate and how far the policy has moved; only ``loss`` is differentiable.

    All but ``skipped`` are parts of a mean over the whole step's tokens, scaled as the loss is.
    """

    loss: Float[Tensor, ""]
    clip_frac: Float[Tensor, ""]
    """Share of kept tokens whose gradient the clip removed."""
    approx_kl: Float[Tensor, ""]
    """Mean of ``log pi_old - log pi``: k1 estimate of KL(old || policy), in nats a token."""
    ratio: Float[Tensor, ""]
    """Mean of ``pi / pi_old``; 1 before the first update."""
    skipped: Bool[Tensor, ""]
    """True where the mean ratio of this call's tokens is above 10 and the loss was therefore
    multiplied by 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOLoss:
    """The DPO loss and the implicit rewards, ``beta * (log pi - log pi_ref)``, detached."""

    loss: Float[Tensor, ""]
    chosen_rewards: Float[Tensor, " batch"]
    rejected_rewards: Float[Tensor, " batch"]


def clipped_policy_loss(
    policy_logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    clip_range: float,
    num_global_tokens: int,
    num_ranks: int,
    clamped: bool = True,
) -> PolicyLoss:
    """Return ``-min(ratio * A, clip(ratio, 1 +- clip_range) * A)`` over the kept tokens.

    A weight per token (importance correction) is the same as a factor on its advantage. The guard
    against a run-away policy looks at the tokens of this call.

    ``clamped`` cuts the log ratio at +-20 nats before exp, so that the guard multiplies a finite
    loss by 0. Without, a log ratio above about 88 nats has an infinite ratio: times 0 the loss is
    NaN where the advantage is negative, and the gradient in either case.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7; computed by OpenRLHF's PolicyLoss, whose
    clamp it is, or as in TRL 0.9.6 where nothing is clamped. The guard (mean ratio above 10) is
    TRL's; OpenRLHF does not have it.
    """
    policy = policy_logprobs.masked_fill(~mask, 0.0)
    old = old_logprobs.masked_fill(~mask, 0.0)
    kept_advantages = advantages.masked_fill(~mask, 0.0)
    if clamped:
        surrogate = openrlhf_losses().PolicyLoss(clip_eps_low=clip_range, clip_eps_high=clip_range)
        loss, *_ = surrogate(
            policy,
            old,
            kept_advantages,
            action_mask=mask,
            dp_size=num_ranks,
            batch_num_tokens=num_global_tokens,
        )
    else:
        free = (policy - old).exp()
        held = free.clamp(1 - clip_range, 1 + clip_range)
        worse = torch.maximum(-kept_advantages * free, -kept_advantages * held)
        loss = masked_sum(worse, mask) / num_global_tokens * num_ranks
    with torch.no_grad():
        log_ratio = policy - old
        limit = MAX_LOG_RATIO if clamped else float("inf")
        ratio = log_ratio.clamp(-limit, limit).exp()
        too_high = (ratio > 1 + clip_range) & (advantages > 0)
        too_low = (ratio < 1 - clip_range) & (advantages < 0)
        skipped = masked_mean(ratio, mask) > MAX_MEAN_RATIO

    def part_of_mean(values: Tensor) -> Tensor:
        return masked_sum(values, mask) / num_global_tokens * num_ranks

    return PolicyLoss(
        loss=loss * ~skipped,
        clip_frac=part_of_mean((too_high | too_low).float()),
        approx_kl=part_of_mean(-log_ratio),
        ratio=part_of_mean(ratio),
        skipped=skipped,
    )


def kl_loss(
    policy_logprobs: Float[Tensor, "batch seq"],
    reference_logprobs: Float[Tensor, "batch seq"],
    weights: Float[Tensor, "batch seq"],
    *,
    num_global_terms: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Return the weighted sum of the k3 estimate of KL(policy || reference), in nats.

    ``weights`` is 0 where a position does not count; whatever stands there plays no part.

    Source: GRPO, Shao et al. 2024 (arXiv:2402.03300), eq. 4.
    """
    kept = weights != 0
    estimate = kl_k3(
        policy_logprobs.masked_fill(~kept, 0.0), reference_logprobs.masked_fill(~kept, 0.0)
    )
    return (estimate * weights).sum() / num_global_terms * num_ranks


def clipped_value_loss(
    values: Float[Tensor, "batch seq"],
    old_values: Float[Tensor, "batch seq"],
    returns: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    clip_range: float,
    num_global_tokens: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Return half the larger squared error of the value and of the value held near the old one.

    Source: TRL 0.9.6, after the released code of Schulman et al. 2017; computed by OpenRLHF's
    ValueLoss.
    """
    loss: Tensor = openrlhf_losses().ValueLoss(clip_eps=clip_range)(
        values.masked_fill(~mask, 0.0),
        old_values.masked_fill(~mask, 0.0),
        returns.masked_fill(~mask, 0.0),
        action_mask=mask,
        dp_size=num_ranks,
        batch_num_tokens=num_global_tokens,
    )
    return loss


def sft_loss(
    token_logprobs: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    num_global_tokens: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Return the negative log-likelihood of the kept tokens; computed by OpenRLHF's SFTLoss."""
    loss: Tensor = openrlhf_losses().SFTLoss()(
        token_logprobs.masked_fill(~mask, 0.0),
        mask,
        dp_size=num_ranks,
        batch_num_tokens=num_global_tokens,
    )
    return loss


def dpo_loss(
    policy_chosen_logprobs: Float[Tensor, " batch"],
    policy_rejected_logprobs: Float[Tensor, " batch"],
    reference_chosen_logprobs: Float[Tensor, " batch"],
    reference_rejected_logprobs: Float[Tensor, " batch"],
    *,
    beta: float,
    num_global_pairs: int,
    num_ranks: int,
) -> DPOLoss:
    """Return ``-log sigmoid`` of the pair's difference in implicit reward.

    Args:
        policy_chosen_logprobs: Log-probability of the whole answer: a sum over its tokens.
        policy_rejected_logprobs: The same of the dispreferred answer.
        reference_chosen_logprobs: The reference's, of the preferred answer.
        reference_rejected_logprobs: The reference's, of the dispreferred answer.
        beta: Scale of the implicit reward; the gradient at the reference is ``beta / 2``.
        num_global_pairs: Pairs of the whole step.
        num_ranks: Learner ranks.

    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; computed by OpenRLHF's DPOLoss, whose
    mean over the local pairs is rescaled to the global count.
    """
    mean, chosen_rewards, rejected_rewards = openrlhf_losses().DPOLoss(beta)(
        policy_chosen_logprobs,
        policy_rejected_logprobs,
        reference_chosen_logprobs,
        reference_rejected_logprobs,
    )
    return DPOLoss(
        loss=mean * (chosen_rewards.shape[0] / num_global_pairs * num_ranks),
        chosen_rewards=chosen_rewards,
        rejected_rewards=rejected_rewards,
    )


def pairwise_reward_loss(
    chosen_rewards: Float[Tensor, " batch"],
    rejected_rewards: Float[Tensor, " batch"],
    *,
    num_global_pairs: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Return ``-log sigmoid(chosen - rejected)``: the reward model's Bradley-Terry loss.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1; computed by OpenRLHF's PairWiseLoss, whose
    mean over the local pairs is rescaled to the global count.
    """
    mean: Tensor = openrlhf_losses().PairWiseLoss()(chosen_rewards, rejected_rewards)
    return mean * (chosen_rewards.shape[0] / num_global_pairs * num_ranks)


def cost_model_loss(
    safe_costs: Float[Tensor, " batch"],
    unsafe_costs: Float[Tensor, " batch"],
    *,
    num_global_pairs: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Return ``-log sigma(c_unsafe - c_safe) - log sigma(c_unsafe) - log sigma(-c_safe)``.

    The two last terms give the sign a meaning: 0 is the boundary between safe and unsafe.

    Source: Dai et al. 2023 (arXiv:2310.12773), eq. 6.
    """
    safe, unsafe = safe_costs.float(), unsafe_costs.float()
    order = F.logsigmoid(unsafe - safe)
    signs = F.logsigmoid(unsafe) + F.logsigmoid(-safe)
    return -(order + signs).sum() / num_global_pairs * num_ranks


def classification_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    num_global_rows: int,
    num_ranks: int,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the labels, in fp32; OpenRLHF has none."""
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return total / num_global_rows * num_ranks
