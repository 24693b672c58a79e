"""Log-probabilities and entropies of next-token distributions, always in fp32.

Ours, not OpenRLHF's ``log_probs_from_logits``: that one stays in bf16 for bf16 logits and takes a
flash-attn kernel where one is installed, so the same batch could give two answers.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "batch seq vocab"], token_ids: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Return log p(token_ids[t]) under ``logits[t]``: the two are already aligned."""
    # [batch, vocab, seq]: the class axis that cross_entropy expects
    return -F.cross_entropy(logits.float().transpose(1, 2), token_ids, reduction="none")


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


def entropy(logits: Float[Tensor, "batch seq vocab"]) -> Float[Tensor, "batch seq"]:
    """Return the entropy of each distribution in nats, between 0 and log(vocab)."""
    logprobs = F.log_softmax(logits.float(), dim=-1)
    return -torch.einsum("bsv,bsv->bs", logprobs.exp(), logprobs)
