"""SafeGrad: the part of an update that works against the refusals is taken out of its gradient."""

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rpa_ray.ops.gradients import inner_products, rows_of
from rpa_ray.ops.kl import kl_of_frozen
from rpa_ray.plugin import (
    Forward,
    GradientPass,
    Need,
    OnlineDefence,
    PluginConfig,
    Shard,
    StepContext,
    global_count,
    is_of_policy,
    parameters_of,
)
from rpa_ray.types import Metrics, ModelOutputs

MIN_NORM = 1e-8
"""A safety gradient below this norm is 0: it is at the original weights."""
_BLOCK = re.compile(r".*?\.\d+(?=\.)")


class SafeGrad(OnlineDefence):
    """``g = g_task - min(0, <g_task, g_safe>) / |g_safe|^2 g_safe + strength g_safe``.

    ``g_safe`` is the gradient of ``KL(pi_theta0 || pi_theta)`` over the whole vocabulary, mean over
    the refusal tokens of a safe batch. Both gradients are averaged over ranks before they are
    compared, and clipping comes after. A safety gradient below 1e-8 leaves the task's as it is, so
    the first update is undefended. With strength 0 nothing is done, the projection neither: the
    step is bit for bit the undefended one. A value head keeps its gradient.

    An update takes one forward and one backward pass more, one of the original model without
    gradients, and the memory of one sharded fp32 gradient. The safe batch is not cut into
    micro-batches. Under ZeRO 1 and 2 with bfloat16 weights the gradient is held in bfloat16, and
    the projected one is orthogonal to that type's precision.

    Source: Yi et al. 2025 (arXiv:2508.07172), eq. 3 to 6, after a public port: the projection over
    all weights at once and the strength 1 are theirs, ``per_layer`` and the batch are ours. Theirs
    sums the KL over prompt and padding too, and divides by the refusal tokens; here only those are
    in the sum, so that it does not hang on the padding.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.SAFE_BATCH, Need.ORIGINAL})
    passes: ClassVar[float] = 2.6
    num_shard_copies: ClassVar[int] = 1

    class Config(PluginConfig):
        name: str = "safegrad"
        strength: float = Field(1.0, ge=0)
        """Weight of the safety gradient (lambda); 0 is no defence."""
        projection: Literal["global", "per_layer"] = "global"
        """Whether the gradients of all weights are one vector, or each block of the model, and each
        parameter outside the blocks, is projected by itself."""
        batch_size: int = Field(8, ge=1)
        """Refusals of one update, over all ranks."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._model: nn.Module | None = None
        self._safety: dict[str, Tensor] = {}

    @property
    def safe_batch_size(self) -> int:
        """Return the number of refusals."""
        return self.config.batch_size

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        """Keep the model, to know its layers: a rank may own nothing of some."""
        self._model = model

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Forward[ModelOutputs], context: StepContext
    ) -> Metrics:
        """Keep the safety gradient, then leave the task's on the parameters."""
        if self.config.strength == 0:
            return gradient_pass()
        loss = self._safety_loss(forward, context)
        found = context.gradients_of(loss)
        self._safety = {name: g for name, g in found.items() if is_of_policy(name)}
        return gradient_pass() | {"defence/safety_kl": float(loss.detach())}

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Project the task's gradient where it works against safety, and add the safety one."""
        if self.config.strength == 0:
            return {}
        safety, self._safety = self._safety, {}
        owned = [shard for shard in shards if shard.name in safety]
        places = self._places()
        found = [inner_products(shard.gradient, safety[shard.name]) for shard in owned]
        own_products = torch.zeros(1 + max(places.values()), 3, dtype=torch.float64)
        own_places = torch.tensor([places[shard.name] for shard in owned], dtype=torch.long)
        own_products.index_add_(0, own_places, rows_of(found))
        products = context.sum_over_shards(own_products).cpu()
        _, safety_squares, dots = products.unbind(dim=1)
        conflicts = conflict(dots, safety_squares)
        weights = (self.config.strength - conflicts) * (safety_squares.sqrt() >= MIN_NORM)
        for shard in owned:
            weight = float(weights[places[shard.name]])
            if weight != 0:
                shard.gradient.copy_(shard.gradient.float() + weight * safety[shard.name])
        task_square, safety_square, dot = products.sum(dim=0).tolist()
        norms = (task_square * safety_square) ** 0.5
        return {
            "defence/task_grad_norm": task_square**0.5,
            "defence/safety_grad_norm": safety_square**0.5,
            "defence/grad_cosine": dot / norms if norms > 0 else 0.0,
            "defence/projected": float((conflicts < 0).double().mean()),
        }

    def _safety_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> Tensor:
        batch = context.next_safe_batch()
        kept = batch.loss_mask[:, 1:]
        policy, frozen = (
            model(batch.input_ids, batch.attention_mask).logits[:, :-1][kept]
            for model in (forward, context.frozen)
        )
        num_tokens = max(1, global_count(kept, context))
        return kl_of_frozen(policy, frozen).sum() / num_tokens * context.num_ranks

    def _places(self) -> dict[str, int]:
        """Return with which others each parameter is projected, by number."""
        assert self._model is not None, "the defence was not attached"
        names = [name for name, _ in parameters_of(self._model) if is_of_policy(name)]
        if self.config.projection == "global":
            return dict.fromkeys(names, 0)
        layers = [block.group() if (block := _BLOCK.match(name)) else name for name in names]
        numbers = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
        return {name: numbers[layer] for name, layer in zip(names, layers, strict=True)}


def conflict(dots: Tensor, safety_squares: Tensor) -> Tensor:
    """Return ``min(0, <task, safety>) / |safety|^2``; 0 where there is no safety gradient.

    That many safety gradients taken off the task's leave it orthogonal to them.
    """
    is_felt = safety_squares.sqrt() >= MIN_NORM
    return torch.where(is_felt, dots.clamp(max=0.0) / safety_squares, 0.0)
