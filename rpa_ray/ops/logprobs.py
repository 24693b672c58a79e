"""Log-probabilities and entropies of next-token distributions, always in fp32.

Ours, not OpenRLHF's ``log_probs_from_logits``: that one stays in bf16 for bf16 logits and takes a
flash-attn kernel where one is installed, so the same batch could give two answers.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_LOGIT_BYTES = 2**30
"""Most bytes that the logits of a pass without gradients would take in fp32."""
_SLICE_BYTES = 2**28
"""Bytes of logits of which, without gradients, fp32 copies are made at once."""


def rows_at_once(width: int, vocab_size: int) -> int:
    """Return how many rows of ``width`` tokens a pass without gradients reads at once, at least 1.

    Example: 4,096 rows of 64 tokens of a vocabulary of 1,024, 2 rows of 640 of one of 152,064.
    """
    return max(1, MAX_LOGIT_BYTES // (4 * vocab_size * max(1, width)))


def in_slices(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return what ``compute`` gives for each position, in slices where no gradient is wanted.

    Args:
        compute: From the tensors [rows, ...] to [rows], each row from its own.
        tensors: Each [batch, seq, ...], the first with the logits.
    """
    shape, vocab_size = tensors[0].shape[:-1], tensors[0].shape[-1]
    flat = [tensor.flatten(0, len(shape) - 1) for tensor in tensors]
    size = max(1, _SLICE_BYTES // (4 * vocab_size))
    if torch.is_grad_enabled() or len(flat[0]) <= size:
        return compute(*flat).view(shape)
    parts = zip(*(torch.split(tensor, size) for tensor in flat), strict=True)
    return torch.cat([compute(*part) for part in parts]).view(shape)


def token_logprobs(
    logits: Float[Tensor, "batch seq vocab"], token_ids: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return log p(token_ids[t]) under ``logits[t]``: the two are already aligned."""
    # Flat: with the class axis last and contiguous, the kernel is up to 20 times as fast on a CPU.
    return in_slices(
        lambda rows, ids: -F.cross_entropy(rows.float(), ids, reduction="none"), logits, token_ids
    )


def next_token_logprobs(
    logits: Float[Tensor, "batch seq vocab"], input_ids: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return at position t the log-probability of ``input_ids[t]`` given the ids before it.

    Args:
        logits: What a causal model gives for ``input_ids``: row t predicts the token at t + 1.
        input_ids: The tokens that were read.

    Returns:
        Column 0 is 0, because nothing predicts the first token.
    """
    predicted = token_logprobs(logits[:, :-1], input_ids[:, 1:])
    return F.pad(predicted, (1, 0))


def answer_logprobs(
    logits: Float[Tensor, "batch seq vocab"],
    input_ids: Int[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
) -> Float[Tensor, " batch"]:
    """Return the log-probability of each row's kept tokens together: their sum, in nats."""
    return next_token_logprobs(logits, input_ids).masked_fill(~mask, 0.0).sum(dim=-1)


def importance_weights(
    learner_logprobs: Float[Tensor, "batch seq"],
    engine_logprobs: Float[Tensor, "batch seq"],
    cap: float,
) -> Float[Tensor, "batch seq"]:
    """Return ``min(pi_learner / pi_engine, cap)`` of each token: the truncated importance weight.

    What an engine sampled is a little off what the learner's own kernels would have; this corrects
    the expectation at a bounded variance. A cap of 0 gives 1 everywhere.

    Source: Ionides 2008, Truncated importance sampling; TRL uses it between vLLM and its learner.
    """
    if cap == 0:
        return torch.ones_like(learner_logprobs)
    return (learner_logprobs - engine_logprobs).clamp(max=math.log(cap)).exp()


def entropy(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, " *rows"]:
    """Return the entropy of each distribution in nats, between 0 and log(vocab)."""
    return in_slices(_entropy, logits)


def _entropy(logits: Tensor) -> Tensor:
    logprobs = F.log_softmax(logits.float(), dim=-1)
    return -torch.einsum("...v,...v->...", logprobs.exp(), logprobs)
