"""Objectives of the jobs that make models: language model, reward model, judge."""

import torch
from torch import Tensor

from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import classification_loss, pairwise_reward_loss, sft_loss
from rpa_ray.plugin import Forward, Objective, StepContext, global_count
from rpa_ray.types import LabelledBatch, LossTerm, ModelOutputs, PairBatch, TokenBatch


class LanguageModel(Objective[TokenBatch, ModelOutputs]):
    """Next-token cross-entropy, mean over the marked tokens of the global batch."""

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the mean negative log-likelihood in nats a token."""
        outputs = forward(batch.input_ids, batch.attention_mask)
        loss = sft_loss(
            next_token_logprobs(outputs.logits, batch.input_ids),
            batch.loss_mask,
            num_global_tokens=global_count(batch.loss_mask, context),
            num_ranks=context.num_ranks,
        )
        return LossTerm(loss=loss, metrics={"train/loss": float(loss.detach())})


class RewardModel(Objective[PairBatch, Tensor]):
    """Bradley-Terry on one score a text. Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1."""

    def loss(self, forward: Forward[Tensor], batch: PairBatch, context: StepContext) -> LossTerm:
        """Return the mean over pairs of ``-log sigma(chosen - rejected)``."""
        chosen = forward(batch.chosen.input_ids, batch.chosen.attention_mask)[:, 0]
        rejected = forward(batch.rejected.input_ids, batch.rejected.attention_mask)[:, 0]
        loss = pairwise_reward_loss(
            chosen,
            rejected,
            num_global_pairs=global_count(torch.ones_like(chosen, dtype=torch.bool), context),
            num_ranks=context.num_ranks,
        )
        accuracy = float((chosen > rejected).float().mean())
        return LossTerm(
            loss=loss, metrics={"train/loss": float(loss.detach()), "train/accuracy": accuracy}
        )


class Judge(Objective[LabelledBatch, Tensor]):
    """Two-class cross-entropy."""

    def loss(
        self, forward: Forward[Tensor], batch: LabelledBatch, context: StepContext
    ) -> LossTerm:
        """Return the mean cross-entropy over rows."""
        scores = forward(batch.input_ids, batch.attention_mask)
        loss = classification_loss(
            scores,
            batch.labels.to(scores.device),
            num_global_rows=global_count(batch.labels >= 0, context),
            num_ranks=context.num_ranks,
        )
        accuracy = float((scores.argmax(dim=-1).cpu() == batch.labels.cpu()).float().mean())
        return LossTerm(
            loss=loss, metrics={"train/loss": float(loss.detach()), "train/accuracy": accuracy}
        )
