"""Cross-entropy against targets with noise on the classes that were not sampled."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def class_noise(
    token_ids: Int[Tensor, " tokens"],
    vocab_size: int,
    *,
    total: float,
    generator: torch.Generator,
) -> Float[Tensor, "tokens vocab"]:
    """Return uniform noise whose rows sum to ``total``; 0 at each row's own token."""
    shape = (len(token_ids), vocab_size)
    noise = torch.rand(shape, generator=generator, device=token_ids.device)
    noise.scatter_(1, token_ids[:, None], 0.0)
    return noise.mul_(total / noise.sum(dim=1, keepdim=True))


def noised_nll(
    logits: Float[Tensor, "tokens vocab"],
    token_ids: Int[Tensor, " tokens"],
    *,
    eps: float,
    noise_weight: float,
    generator: torch.Generator,
) -> Float[Tensor, " tokens"]:
    """Return ``(1 - eps) * -log p(y) + sum over v != y of n_v * -log p(v)``, in nats, in fp32.

    Args:
        logits: What predicts each token: the two are already aligned.
        token_ids: The tokens y.
        eps: What y's own weight falls short of 1, in [0, 1].
        noise_weight: Sum of the weights n of all other classes.
        generator: Draws n, on the device of the logits.

    Source: the Token Noiser of TokenBuncher (arXiv:2508.20697).
    """
    weights = class_noise(token_ids, logits.shape[-1], total=noise_weight, generator=generator)
    weights.scatter_(1, token_ids[:, None], 1.0 - eps)
    return F.cross_entropy(logits.float(), weights, reduction="none")
