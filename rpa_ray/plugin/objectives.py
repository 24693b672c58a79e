"""Objectives that more than one job has: language model, reward model, judge."""

import torch
from torch import Tensor

from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import classification_loss, cost_model_loss, pairwise_reward_loss, sft_loss
from rpa_ray.plugin import Forward, Objective, StepContext
from rpa_ray.types import (
    LabelledBatch,
    LossTerm,
    Metrics,
    ModelOutputs,
    PairBatch,
    TokenBatch,
    num_rows,
)


class LanguageModel(Objective[TokenBatch, ModelOutputs]):
    """Next-token cross-entropy, mean over the marked tokens of the global batch."""

    def __init__(self, metric: str = "train/loss") -> None:
        """Take the name under which the loss is logged."""
        self._metric = metric

    def num_terms(self, batch: TokenBatch) -> Tensor:
        """Return the number of marked tokens."""
        return batch.loss_mask.sum()

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the mean negative log-likelihood in nats a token."""
        outputs = forward(batch.input_ids, batch.attention_mask)
        loss = sft_loss(
            next_token_logprobs(outputs.logits, batch.input_ids),
            batch.loss_mask,
            num_global_tokens=context.num_terms,
            num_ranks=context.num_ranks,
        )
        return LossTerm(loss=loss, metrics={self._metric: float(loss.detach())})


class RewardModel(Objective[PairBatch, Tensor]):
    """Bradley-Terry on one score a text. Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1."""

    def num_terms(self, batch: PairBatch) -> Tensor:
        """Return the number of pairs."""
        return torch.tensor(num_rows(batch))

    def loss(self, forward: Forward[Tensor], batch: PairBatch, context: StepContext) -> LossTerm:
        """Return the mean over pairs of ``-log sigma(chosen - rejected)``."""
        chosen = forward(batch.chosen.input_ids, batch.chosen.attention_mask)[:, 0]
        rejected = forward(batch.rejected.input_ids, batch.rejected.attention_mask)[:, 0]
        loss = pairwise_reward_loss(
            chosen,
            rejected,
            num_global_pairs=context.num_terms,
            num_ranks=context.num_ranks,
        )
        return LossTerm(loss=loss, metrics=_metrics(loss, chosen > rejected, context))


class CostModel(Objective[PairBatch, Tensor]):
    """One score a text, positive where it is unsafe; of a pair the safer answer is ``chosen``.

    Every pair is one of a safe and an unsafe answer, so that the sign of each score has a label.

    Source: Dai et al. 2023 (arXiv:2310.12773), eq. 6.
    """

    def num_terms(self, batch: PairBatch) -> Tensor:
        """Return the number of pairs."""
        return torch.tensor(num_rows(batch))

    def loss(self, forward: Forward[Tensor], batch: PairBatch, context: StepContext) -> LossTerm:
        """Return the mean over pairs of the losses of the order and of both signs."""
        safe = forward(batch.chosen.input_ids, batch.chosen.attention_mask)[:, 0]
        unsafe = forward(batch.rejected.input_ids, batch.rejected.attention_mask)[:, 0]
        loss = cost_model_loss(
            safe, unsafe, num_global_pairs=context.num_terms, num_ranks=context.num_ranks
        )
        return LossTerm(loss=loss, metrics=_metrics(loss, (unsafe > 0) & (safe < 0), context))


class Judge(Objective[LabelledBatch, Tensor]):
    """Two-class cross-entropy."""

    def num_terms(self, batch: LabelledBatch) -> Tensor:
        """Return the number of rows."""
        return torch.tensor(num_rows(batch))

    def loss(
        self, forward: Forward[Tensor], batch: LabelledBatch, context: StepContext
    ) -> LossTerm:
        """Return the mean cross-entropy over rows."""
        scores = forward(batch.input_ids, batch.attention_mask)
        labels = batch.labels.to(scores.device)
        loss = classification_loss(
            scores, labels, num_global_rows=context.num_terms, num_ranks=context.num_ranks
        )
        right = scores.argmax(dim=-1) == labels
        return LossTerm(loss=loss, metrics=_metrics(loss, right, context))


def _metrics(loss: Tensor, right: Tensor, context: StepContext) -> Metrics:
    """Return loss and accuracy; ``right`` says of each row or pair whether the model is right."""
    accuracy = float(right.sum()) / context.num_terms * context.num_ranks
    return {"train/loss": float(loss.detach()), "train/accuracy": accuracy}
