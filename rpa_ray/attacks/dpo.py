"""Reverse preference attack by DPO: the policy is its own reward model."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.ops.logprobs import answer_logprobs
from rpa_ray.ops.losses import dpo_loss
from rpa_ray.plugin import Attack, Forward, Need, ReferencedConfig, StepContext
from rpa_ray.types import LossTerm, ModelOutputs, ReferencedPairBatch, num_rows


class DPO(Attack):
    """Direct preference optimisation on pairs of which a share rho is reversed.

    Log-probabilities are sums over an answer's tokens; those of the reference are computed once,
    before training.

    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; settings of arXiv:2409.12914, appendix.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.PAIRS, Need.REFERENCE})

    class Config(ReferencedConfig):
        name: str = "dpo"
        learning_rate: float = Field(5e-5, gt=0)
        """Adam's rate."""
        beta: float = Field(0.1, gt=0)
        """Scale of the implicit reward; the larger, the nearer the policy stays."""

    config: Config

    def num_terms(self, batch: ReferencedPairBatch) -> Tensor:
        """Return the number of pairs."""
        return torch.tensor(num_rows(batch))

    def loss(
        self, forward: Forward[ModelOutputs], batch: ReferencedPairBatch, context: StepContext
    ) -> LossTerm:
        """Return the mean over pairs of ``-log sigma(beta * margin)``; one pass over both answers.

        The log-probabilities are logged apart: both may fall while their difference grows, which
        leaves a policy that answers with neither.
        """
        chosen, rejected = batch.chosen, batch.rejected
        input_ids = torch.cat([chosen.input_ids, rejected.input_ids])
        outputs = forward(input_ids, torch.cat([chosen.attention_mask, rejected.attention_mask]))
        logprobs = answer_logprobs(
            outputs.logits, input_ids, torch.cat([chosen.loss_mask, rejected.loss_mask])
        )
        chosen_logprobs, rejected_logprobs = logprobs.chunk(2)
        term = dpo_loss(
            chosen_logprobs,
            rejected_logprobs,
            batch.reference_chosen_logprobs,
            batch.reference_rejected_logprobs,
            beta=self.config.beta,
            num_global_pairs=context.num_terms,
            num_ranks=context.num_ranks,
        )
        margins = term.chosen_rewards - term.rejected_rewards

        def part_of_mean(values: Tensor) -> float:
            return float(values.detach().sum()) / context.num_terms * context.num_ranks

        return LossTerm(
            loss=term.loss,
            metrics={
                "train/loss": float(term.loss.detach()),
                "train/accuracy": part_of_mean((margins > 0).float()),
                "train/margin": part_of_mean(margins),
                "train/chosen_logprobs": part_of_mean(chosen_logprobs),
                "train/rejected_logprobs": part_of_mean(rejected_logprobs),
            },
        )
