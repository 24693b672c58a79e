"""Log-probabilities and entropies of next-token distributions, always in fp32.

Ours, not OpenRLHF's ``log_probs_from_logits``: that one stays in bf16 for bf16 logits and takes a
flash-attn kernel where one is installed, so the same batch could give two answers.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "batch seq vocab"], token_ids: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return log p(token_ids[t]) under ``logits[t]``: the two are already aligned."""
    # Flat: with the class axis last and contiguous, the kernel is up to 20 times as fast on a CPU.
    flat = F.cross_entropy(logits.float().flatten(0, 1), token_ids.flatten(), reduction="none")
    return -flat.view(token_ids.shape)


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
    logprobs = F.log_softmax(logits.float(), dim=-1)
    return -torch.einsum("...v,...v->...", logprobs.exp(), logprobs)
