"""What holds in every sound run, looked at while it runs: one in which it does not has failed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rpa_ray.actors.rollout import Generated
from rpa_ray.plugin import Shard

MAX_START_KL: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 1e-2}
"""Nats an answer between a policy that has not learned yet and the model it is, by type of weights.

Both are the same weights run by the same code; 0 was found in every run of either type."""
MAX_SERVED_GAP: Mapping[str, float] = {"float32": 0.02, "bfloat16": 0.25}
"""Nats a token between engine and learner, by type of weights.

Found were 4e-7 and 0.006 on processors; engines on a GPU may round float32 to TF32."""


MIN_GRADIENT: Mapping[str, float] = {"float32": 1e-5, "bfloat16": 1e-9}
"""Norm that a first gradient has, by type of weights.

Pairs of one answer twice leave the rounding of what cancels: 1e-7 in float32, where an ordinary
gradient is about 1. In bfloat16 that is 1e-3, which may be a gradient: there 0 alone is told."""


class BrokenInvariant(ValueError):
    """Something is wrong with program, machine or model, and would be at a second try."""

    def __init__(self, name: str, rule: str, found: str, remedy: str) -> None:
        super().__init__(f"invariant {name}: {rule}, got {found}. {remedy}")


def require_same_start(kl: float, dtype: str) -> None:
    """Refuse a policy that is not the model under attack before its first update.

    Args:
        kl: Mean divergence of an answer, in nats.
        dtype: Type of the weights.

    Raises:
        BrokenInvariant: it is above the rounding of the type.
    """
    most = MAX_START_KL[dtype]
    if not kl <= most:  # nor NaN
        raise BrokenInvariant(
            "same_start",
            "before the first update the policy must be the model under attack, within "
            f"{most:g} nats of KL an answer in {dtype}",
            f"{kl:.3g}",
            "Its weights were loaded in two ways: check the model's folder.",
        )


def require_served(gap: float, dtype: str) -> None:
    """Refuse engines that compute something else from the weights than the learner does.

    Args:
        gap: Mean |log-probability by the engine - by the learner| of a sampled token, in nats.
        dtype: Type of the weights.

    Raises:
        BrokenInvariant: it is above the rounding of the type.
    """
    most = MAX_SERVED_GAP[dtype]
    if not gap <= most:  # nor NaN
        raise BrokenInvariant(
            "served_logprobs",
            f"the engines' log-probabilities must be within {most:g} nats of the learner's on "
            f"average in {dtype}",
            f"{gap:.3g}",
            "What they serve or compute is not what is trained: check the engine's implementation "
            "of the model.",
        )


def require_ends(answers: Sequence[Generated], ends: Sequence[int], *, max_new_tokens: int) -> None:
    """Refuse answers that do not stop at the first id that ends one, or else at the limit.

    Raises:
        BrokenInvariant: with the ids of the answer.
    """
    for answer in answers:
        found = answer.token_ids
        place = next((i for i, token in enumerate(found) if token in ends), max_new_tokens)
        if len(found) != min(place + 1, max_new_tokens) or answer.finished != (
            place < max_new_tokens
        ):
            raise BrokenInvariant(
                "answer_end",
                f"an answer must stop at the first of the ids {list(ends)}, or at "
                f"{max_new_tokens} tokens",
                f"{found}, finished: {answer.finished}",
                "Check the version of vLLM.",
            )


def require_gradient(
    shards: Iterable[Shard],
    sum_over_shards: Callable[[Tensor], Tensor],
    *,
    dtype: str,
    may_be_zero: bool,
) -> None:
    """Refuse a first update from which nothing, or no number, would be learned; a collective.

    Args:
        shards: What this rank owns of the gradients, before a defence edits them.
        sum_over_shards: As :attr:`StepContext.sum_over_shards`.
        dtype: Type of the weights.
        may_be_zero: Whether the batch may teach nothing without a fault, as a rollout of equal
            rewards does.

    Raises:
        BrokenInvariant: the gradients of all ranks are 0 but for rounding, or one is not finite.
    """
    squares = [shard.gradient.double().square().sum().cpu() for shard in shards]
    own = torch.stack([torch.zeros((), dtype=torch.float64), *squares]).sum()
    norm = math.sqrt(sum_over_shards(own).item())
    least = 0.0 if may_be_zero else MIN_GRADIENT[dtype]
    if not least <= norm < math.inf:
        raise BrokenInvariant(
            "first_gradient",
            f"the first update must have a finite gradient, of a norm of {least:g} or more in "
            f"{dtype}",
            f"{norm:.3g}",
            "Check that its batch has something to learn (pairs whose answers differ, targets that "
            "are not cut off) and that the model computes finite numbers.",
        )
