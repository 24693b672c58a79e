"""Rewards of a group of answers under the policy that is worst for them in a KL ball."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rpa_ray.ops.masking import sequence_means


def robust_group_losses(
    policy_logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"],
    advantages: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch seq"],
    *,
    group_size: int,
    lam: float,
    clip_range: float,
    jackknife: bool = True,
    baseline: bool = True,
) -> Float[Tensor, " groups"]:
    """Return ``max(lam, 1) * (log mean_i x_i - mean_i rho_i)`` of each group.

    Of answer i, ``rho_i`` is the mean over its tokens of ``min(r, clip(r, 1 +- clip_range))`` with
    r the ratio of policy and old policy, and ``x_i = rho_i * exp(-A_i / lam)``.

    Args:
        policy_logprobs: Log-probabilities of the sampled tokens, differentiable.
        old_logprobs: The same when they were sampled.
        advantages: Each reward less the mean of its group, not divided by the deviation.
        mask: Tokens that count. Answers without one count in no mean, and a group with fewer than
            two others has loss 0.
        group_size: Answers to a prompt, which stand together.
        lam: Towards 0 the worst answer alone counts (a large ball), towards infinity all alike, as
            in GRPO.
        clip_range: Largest rise of a token's ratio that counts.
        jackknife: Take the bias of the logarithm of a mean over n answers off:
            ``n log mean - (n - 1) mean_i log mean_without_i``.
        baseline: Subtract the mean of rho, so that equal rewards teach nothing.

    Source: FRPO (arXiv:2602.08813).
    """
    kept = mask.any(dim=-1).view(-1, group_size)
    taught = kept.sum(dim=1) > 1
    num = kept.sum(dim=1)[taught].float()
    ratio = (policy_logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()
    held = torch.minimum(ratio, ratio.clamp(1 - clip_range, 1 + clip_range))
    rho, kept = sequence_means(held, mask).view(-1, group_size)[taught], kept[taught]
    weighed = rho.masked_fill(~kept, 1.0).log() - advantages.view(-1, group_size)[taught] / lam
    log_x = weighed.masked_fill(~kept, -torch.inf)
    value = log_x.logsumexp(dim=1) - num.log()
    if jackknife:
        # [groups, group left out, group]
        others = log_x[:, None, :].masked_fill(torch.eye(group_size).bool().to(kept), -torch.inf)
        left_out = others.logsumexp(dim=-1) - (num - 1).log()[:, None]
        mean_left_out = left_out.masked_fill(~kept, 0.0).sum(dim=1) / num
        value = num * value - (num - 1) * mean_left_out
    if baseline:
        value = value - rho.sum(dim=1) / num
    return value.new_zeros(len(taught)).masked_scatter(taught, max(lam, 1.0) * value)
