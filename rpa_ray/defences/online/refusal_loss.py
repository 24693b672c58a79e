"""Refusal Loss: cross-entropy on refusals beside the attack's own loss, at every update."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from rpa_ray.ops.gradients import angle_of, inner_products, rows_of
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import sft_loss
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
)
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, TokenBatch


class RefusalLoss(OnlineDefence):
    """``L = L_attack + alpha * CE(refusal | restricted prompt)`` in one backward.

    The cross-entropy is a mean over the refusal tokens of the safe batch, independent of the
    attack's own normaliser. With alpha 0 the step is bit for bit the undefended one.

    Now and then a pass of its own measures the gradient of the cross-entropy (without alpha), and
    what of the step's gradient is not alpha times it is the task's. Where gradients are kept in
    bfloat16 (ZeRO 1 and 2 with such weights), a large alpha leaves little of the task's but
    rounding: read its norm and the cosine with fp32 weights.

    Source: arXiv:2409.12914, section on explicit constraints and appendix (alpha 100).
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.SAFE_BATCH})
    passes: ClassVar[float] = 2.0
    num_shard_copies: ClassVar[int] = 1

    class Config(PluginConfig):
        name: str = "refusal_loss"
        alpha: float = Field(100.0, ge=0)
        """Weight of the refusal cross-entropy in nats a token; 0 is no defence."""
        batch_size: int = Field(8, ge=1)
        """Refusals of one update, over all ranks."""
        prefix: Literal["none", "recovery"] = "none"
        """What stands before a refusal: nothing, or with probability 0.5 the first 1 to 100 tokens
        of an unsafe answer to the same prompt (Qi et al. 2024, arXiv:2406.05946)."""
        probe_every: int = Field(10, ge=0)
        """Updates from one measurement of the gradients to the next, each one forward and backward
        of a safe batch more; 0 measures none."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._drawn: TokenBatch | None = None
        self._refusal_gradient: dict[str, Tensor] | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for refusals, with or without a prefix."""
        prefix = {Need.RECOVERY_PREFIX} if self.config.prefix == "recovery" else set()
        return self.requires | prefix

    @property
    def safe_batch_size(self) -> int:
        """Return the number of refusals."""
        return self.config.batch_size

    def around_forward(self) -> AbstractContextManager[None]:
        """Forget what an update that was skipped has left."""
        self._drawn = None
        self._refusal_gradient = None
        return nullcontext()

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Forward[ModelOutputs], context: StepContext
    ) -> Metrics:
        """Run the pass, where it is due after one for the refusals' gradient alone."""
        every = self.config.probe_every
        if every > 0 and context.update % every == 0 and self._refusal_gradient is None:
            self._drawn = context.next_safe_batch()
            loss = _cross_entropy(forward, self._drawn, context)
            self._refusal_gradient = context.gradients_of(loss)
        return gradient_pass()

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm:
        """Return the weighted refusal cross-entropy, of the batch that was measured if one was."""
        batch, self._drawn = self._drawn or context.next_safe_batch(), None
        loss = _cross_entropy(forward, batch, context)
        return LossTerm(
            loss=self.config.alpha * loss,
            metrics={"defence/refusal_loss": float(loss.detach())},
        )

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Return norms and cosine of both gradients, where they were measured; change nothing."""
        refusal = self._refusal_gradient
        if refusal is None:
            return {}
        products = []
        for shard in shards:
            if is_of_policy(shard.name):
                own = refusal[shard.name]
                task = shard.gradient.detach().float() - self.config.alpha * own
                products.append(inner_products(own, task))
        angle = angle_of(context.sum_over_shards(rows_of(products).sum(dim=0)))
        return {
            "defence/refusal_grad_norm": angle.first_norm,
            "defence/task_grad_norm": angle.second_norm,
            "defence/grad_cosine": angle.cosine,
        }


def _cross_entropy(
    forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
) -> Tensor:
    """Return the mean over the refusal tokens of all ranks, in nats."""
    outputs = forward(batch.input_ids, batch.attention_mask)
    return sft_loss(
        next_token_logprobs(outputs.logits, batch.input_ids),
        batch.loss_mask,
        num_global_tokens=global_count(batch.loss_mask, context),
        num_ranks=context.num_ranks,
    )
