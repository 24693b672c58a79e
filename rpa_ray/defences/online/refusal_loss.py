"""Refusal Loss: cross-entropy on refusals beside the attack's own loss, at every update."""

from typing import ClassVar

from pydantic import Field

from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import sft_loss
from rpa_ray.plugin import (
    Forward,
    Need,
    OnlineDefence,
    PluginConfig,
    StepContext,
    global_count,
)
from rpa_ray.types import LossTerm, ModelOutputs


class RefusalLoss(OnlineDefence):
    """``L = L_attack + alpha * CE(refusal | restricted prompt)`` in one backward.

    The cross-entropy is a mean over the refusal tokens of the safe batch, independent of the
    attack's own normaliser. With alpha 0 the step is bit for bit the undefended one.

    Source: arXiv:2409.12914, section on explicit constraints and appendix (alpha 100).
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.SAFE_BATCH})

    class Config(PluginConfig):
        name: str = "refusal_loss"
        alpha: float = Field(100.0, ge=0)
        """Weight of the refusal cross-entropy in nats a token; 0 is no defence."""
        batch_size: int = Field(8, ge=1)
        """Refusals of one update, over all ranks."""

    config: Config

    @property
    def safe_batch_size(self) -> int:
        """Return the number of refusals."""
        return self.config.batch_size

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm:
        """Return the weighted refusal cross-entropy."""
        batch = context.next_safe_batch()
        outputs = forward(batch.input_ids, batch.attention_mask)
        loss = sft_loss(
            next_token_logprobs(outputs.logits, batch.input_ids),
            batch.loss_mask,
            num_global_tokens=global_count(batch.loss_mask, context),
            num_ranks=context.num_ranks,
        )
        return LossTerm(
            loss=self.config.alpha * loss,
            metrics={"defence/refusal_loss": float(loss.detach())},
        )
