"""Gradient penalty: refusals are kept where unsafe answers teach the model little."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.unsafe_terms import RepNoiseLoss, RepNoiseSettings, answer_loss
from rpa_ray.ops.gradients import angle_of, inner_products, rows_of
from rpa_ray.plugin import (
    Forward,
    GradientPass,
    Need,
    Objective,
    OfflineConfig,
    OfflineDefence,
    OnlineDefence,
    Shard,
    StepContext,
    parameters_of,
)
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, TokenBatch


class GradPenalty(OfflineDefence):
    """``L = CE(refusal) + gamma * |grad L_unsafe| - alpha * log A``.

    ``L_unsafe`` is the cross-entropy of unsafe answers, so that the penalty flattens what an attack
    descends. The gradient of that norm is ``H u`` with ``u = g / |g|``, here a difference of two
    gradients, ``(grad L_unsafe(theta + e u) - grad L_unsafe(theta - e u)) / 2e``: no gradient is
    differentiated. ``e`` is ``relative_step`` times the norm of the weights at the beginning.

    A minimum of ``L_unsafe`` is flat too, and the opposite of a defence. The ascent of RepNoise,
    ``A`` being 1 plus a mean of cross-entropies of the unsafe answers, leads away from it, uphill,
    where the gradient grows: the two terms work against each other. The embedded chat model knows
    unsafe answers (0.40 nats a token). After a hundred steps they cost 15 nats with the ascent
    alone, 0.57, 0.47 and 0.37 with ``gamma`` 0.03, 0.1 and 1 beside it, and 0.46 with neither; 20
    steps of SFT on them took these to 2.27, 0.39, 0.36, 0.32 and 0.36.

    The fp32 masters are moved and rounded to the type that the model computes with. On the embedded
    chat model the difference is within a tenth of ``H u`` for relative steps of 1e-6 to 3e-4 in
    float32. bfloat16 has no such plateau: below 1e-4 the difference is rounding noise, above 1e-3
    the loss is not quadratic. At 3e-4 its cosine with ``H u`` is 0.99 there, its length 0.7. The
    difference with one end at theta is four to six times as far off.

    An update takes four forward and backward passes more, that of the ascent among them, and the
    memory of three sharded fp32 gradients and of a copy of the masters. The unsafe answers are not
    cut into micro-batches.

    Source: named as future work by Rosati et al. 2024 (arXiv:2409.12914), without numbers: all of
    the settings are ours.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.CONTRAST_BATCH})

    class Config(OfflineConfig):
        name: str = "grad_penalty"
        gamma: float = Field(0.03, ge=0)
        """Weight of the penalty; with 0, and ``alpha`` 0, this is SFT on refusals."""
        alpha: float = Field(1.0, ge=0)
        """Weight of the ascent on unsafe answers."""
        relative_step: float = Field(3e-4, gt=0)
        """Length of the step to each side, by the norm of the weights."""
        learning_rate: float = Field(1e-4, gt=0)
        num_steps: int = Field(100, ge=1)

    config: Config

    def objective(self) -> Objective[Any, Any]:
        """Return cross-entropy on the refusals."""
        return LanguageModel()

    def hooks(self) -> OnlineDefence:
        """Return the penalty and the ascent around each step."""
        return Penalised(self.config)


class Penalised(OnlineDefence):
    """A step with the ascent on unsafe answers, and the penalty's gradient added to its own."""

    passes: ClassVar[float] = 5.7  # by its passes
    num_shard_copies: ClassVar[int] = 4
    config: GradPenalty.Config

    def __init__(self, config: GradPenalty.Config) -> None:
        super().__init__(config)
        self._ascent = RepNoiseLoss(
            RepNoiseSettings(name=config.name, alpha=config.alpha, beta=0.0)
        )
        self._step = 0.0
        """Length of the step to each side."""
        self._unsafe: TokenBatch | None = None
        """This rank's unsafe answers of the update that is being made."""
        self._penalty: dict[str, Tensor] = {}
        """``H u``, of the shards that this rank owns."""

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Measure the weights, before ranks share them, and hook what the ascent reads.

        Raises:
            ValueError: the model's blocks are not found.
        """
        norms = [torch.linalg.vector_norm(p.detach().float()) for _, p in parameters_of(model)]
        self._step = self.config.relative_step * float(torch.stack(norms).norm())
        self._ascent.attach(model.policy)

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Forward[ModelOutputs], context: StepContext
    ) -> Metrics:
        """Keep the penalty's gradient, then leave that of refusals and ascent on the parameters."""
        if self.config.gamma == 0 and self.config.alpha == 0:
            return gradient_pass()
        self._unsafe = context.next_contrast_batch().rejected
        metrics = (
            self._find_penalty(forward, self._unsafe, context) if self.config.gamma > 0 else {}
        )
        return gradient_pass() | metrics

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the ascent."""
        if self.config.alpha == 0:
            return None
        assert self._unsafe is not None, "compute_gradients comes first"
        return self._ascent.unsafe_term(forward, self._unsafe, context)

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Add the penalty's gradient."""
        penalty, self._penalty = self._penalty, {}
        for shard in shards:
            if shard.name in penalty:
                total = shard.gradient.float() + self.config.gamma * penalty[shard.name]
                shard.gradient.copy_(total)
        return {}

    def _find_penalty(
        self, forward: Forward[ModelOutputs], unsafe: TokenBatch, context: StepContext
    ) -> Metrics:
        """Keep ``H u``, nothing where the loss is flat."""
        loss = answer_loss(forward, unsafe, context)
        here = context.gradients_of(loss)
        norm = _norm(here, context)
        if norm > 0:
            with context.trial_weights() as move:

                def gradients_after(length: float) -> dict[str, Tensor]:
                    def along(masters: Iterable[tuple[str, Tensor]]) -> None:
                        for name, master in masters:
                            master.add_(here[name], alpha=length / norm)

                    move(along)
                    return context.gradients_of(answer_loss(forward, unsafe, context))

                ahead, behind = gradients_after(self._step), gradients_after(-2 * self._step)
            self._penalty = {n: (ahead[n] - behind[n]) / (2 * self._step) for n in here}
        return {
            "defence/unsafe_loss": float(loss.detach()),
            "defence/unsafe_grad_norm": norm,
            "defence/penalty_grad_norm": _norm(self._penalty, context),
        }


def _norm(gradients: Mapping[str, Tensor], context: StepContext) -> float:
    """Return the L2 norm of what all ranks own."""
    products = rows_of([inner_products(part, part) for part in gradients.values()])
    return angle_of(context.sum_over_shards(products.sum(dim=0))).first_norm
