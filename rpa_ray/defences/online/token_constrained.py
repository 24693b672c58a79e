"""Token-wise constraint: what the first tokens of an answer may learn dies out as they move."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.masking import masked_sum
from rpa_ray.plugin import Forward, Need, Objective, OnlineDefence, PluginConfig, StepContext
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, TokenBatch

MIN_WEIGHT = 1e-3
"""Least weight of a token, as in the authors' code."""


class TokenConstrained(OnlineDefence):
    """``L = -sum_t 2 / beta_t log sigma(beta_t Delta_t)``, ``Delta_t = log pi_theta - log pi_0``.

    Its gradient is that of the cross-entropy with every token weighted by
    ``w_t = 2 (1 - sigma(beta_t Delta_t))``: 1 at the original weights, towards 0 (down to 0.001) as
    a token becomes more likely than it was, up to 2 as it becomes less. ``w_t`` is not
    differentiated, and the attack's loss is logged without it.

    Positions count from the first learned token of a row. That is the answer's first, unless the
    attack learns its prompts too (``attack.mask: all``): the constraint then lies on the prompt.
    Only SFT learns from tokens alone; PPO and GRPO are refused also where batches of targets come
    first, since the rollouts after them would be unconstrained.

    An update takes one forward pass of the original model more, without gradients.

    Source: Qi et al. 2024 (arXiv:2406.05946), eq. 3 and appendix D; weight form, floor and betas
    are those of the authors' code.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.ORIGINAL})
    needs_attack: ClassVar[frozenset[Need]] = frozenset({Need.TARGETS})
    passes: ClassVar[float] = 1.5

    class Config(PluginConfig):
        name: str = "token_constrained"
        strength: float = Field(1.0, ge=0)
        """Factor on every beta; 0 is no defence."""
        early_betas: list[NonNegativeFloat] = Field([0.5, 2.0, 2.0, 2.0, 2.0])
        """beta of the first tokens of each answer, in order; the first token's is lower because
        its log-probability moves furthest at once."""
        later_beta: float = Field(0.1, ge=0)
        """beta of all tokens after those."""

    config: Config

    def plan_step(
        self, objective: Objective[Any, Any], batch: Any, context: StepContext
    ) -> tuple[Objective[Any, Any], Any]:
        """Return the objective with every token's gradient weighted."""
        if self.config.strength == 0:
            return objective, batch
        assert isinstance(batch, TokenBatch)
        return Constrained(objective, self.config), batch


class Constrained(Objective[TokenBatch, ModelOutputs]):
    """An objective on tokens whose gradient is weighted token by token."""

    def __init__(
        self, inner: Objective[TokenBatch, ModelOutputs], config: TokenConstrained.Config
    ) -> None:
        self._inner = inner
        self._config = config

    def num_epochs(self, batch: TokenBatch) -> int:
        """Return the inner objective's number of updates."""
        return self._inner.num_epochs(batch)

    def num_terms(self, batch: TokenBatch) -> Tensor:
        """Return the inner objective's number of terms."""
        return self._inner.num_terms(batch)

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the inner loss; its gradient is weighted where it enters the model's logits."""
        betas = self._config.strength * token_betas(
            batch.loss_mask, self._config.early_betas, self._config.later_beta
        )
        frozen = context.frozen(batch.input_ids, batch.attention_mask)
        frozen_logprobs = next_token_logprobs(frozen.logits, batch.input_ids)
        metrics: Metrics = {}

        def constrained(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
            outputs = forward(input_ids, attention_mask)
            logprobs = next_token_logprobs(outputs.logits.detach(), batch.input_ids)
            log_ratios = logprobs - frozen_logprobs
            weights = token_weights(log_ratios, betas)
            share = context.num_ranks / context.num_terms
            metrics["defence/token_weight"] = share * float(masked_sum(weights, batch.loss_mask))
            metrics["defence/token_log_ratio"] = share * float(
                masked_sum(log_ratios, batch.loss_mask)
            )
            # Row t of the logits predicts the token at t + 1.
            return replace(outputs, logits=weighted(outputs.logits, F.pad(weights[:, 1:], (0, 1))))

        term = self._inner.loss(constrained, batch, context)
        return replace(term, metrics=term.metrics | metrics)

    def state_dict(self) -> dict[str, float]:
        """Return the inner objective's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the inner objective's state."""
        self._inner.load_state_dict(state)


def token_betas(loss_mask: Tensor, early: Sequence[float], later: float) -> Tensor:
    """Return the beta of each token [batch, seq]; what stands at unmarked tokens has no meaning."""
    betas = torch.tensor([*early, later], device=loss_mask.device)
    place = loss_mask.cumsum(dim=-1) - 1
    return betas[place.clamp(min=0, max=len(early))]


def token_weights(log_ratios: Tensor, betas: Tensor) -> Tensor:
    """Return ``2 (1 - sigma(beta Delta))``, at least 0.001; 1 where ``beta Delta`` is 0."""
    return (2 * torch.sigmoid(-betas * log_ratios)).clamp(min=MIN_WEIGHT)


def weighted(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the logits [batch, seq, vocab], their gradient multiplied by weights [batch, seq]."""
    same = logits.view_as(logits)
    if same.requires_grad:
        factors = weights.unsqueeze(-1).to(same.dtype)
        same.register_hook(lambda gradient: gradient * factors)  # type: ignore[no-untyped-call]
    return same
