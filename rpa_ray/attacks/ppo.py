"""Reverse preference attack by PPO after TRL 0.9.6, with which the literature ran it."""

import logging
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.attacks.rollout import RolloutAttack, entropy_sum
from rpa_ray.ops.advantages import (
    AdvantageEstimate,
    gae,
    token_rewards,
    whiten_with,
    whitening_sums,
)
from rpa_ray.ops.kl import AdaptiveKL, FixedKL, kl_k1
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import clipped_policy_loss, clipped_value_loss
from rpa_ray.plugin import Forward, Need, RolloutConfig, StepContext, global_count, global_mean
from rpa_ray.types import Experience, LossTerm, Metrics, ModelOutputs, ScoredRollout, TokenBatch

logger = logging.getLogger(__name__)

NEGATIVE_KL_LIMIT = -1.0
"""A sequence-summed KL estimate below this says that samples are not the policy's own."""


class PPO(RolloutAttack):
    """Clipped policy gradient on a reward model whose preferences were reversed.

    Per-token reward ``-k * (log pi_old - log pi_ref)`` plus the score at the last token, GAE,
    whitened advantages, several epochs on each rollout batch, value head on the policy's trunk.

    Departures from TRL 0.9.6: the log ratio is cut at +-20 nats, where TRL's ratio overflows, its
    guard makes a NaN of infinity times 0, and the weights that follow sample nothing any more
    (``trl_exact``); tokens have importance weights (``importance_cap``); the guard looks at each
    micro-batch; the value head has the type of the weights, another initialisation and no dropout.

    Source: Schulman et al. 2017 (arXiv:1707.06347); settings of arXiv:2409.12914, appendix.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS, Need.VALUES, Need.REFERENCE})

    class Config(RolloutConfig):
        name: str = "ppo"
        learning_rate: float = Field(1.41e-5, gt=0)
        """Adam's rate; the embedded 1M models need 5e-5."""
        num_epochs: int = Field(4, ge=1)
        """Optimizer updates on each rollout batch."""
        kl_coef: float = Field(0.2, ge=0)
        """Weight of the KL penalty in the reward; the start value of the adaptive controller."""
        kl_control: Literal["adaptive", "fixed"] = "adaptive"
        kl_target: float = Field(6.0, gt=0)
        """Sequence-summed KL in nats that the adaptive controller aims at."""
        kl_horizon: int = Field(10_000, ge=1)
        gamma: float = Field(1.0, ge=0, le=1)
        gae_lambda: float = Field(0.95, ge=0, le=1)
        clip_range: float = Field(0.2, gt=0)
        value_clip_range: float = Field(0.2, gt=0)
        value_coef: float = Field(0.1, ge=0)
        whiten_advantages: bool = True
        trl_exact: bool = False
        """Whether the log ratio is left unclamped, as in TRL 0.9.6; a loss that is not finite then
        ends the run at once, as it breaks the policy there."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.kl_control == "adaptive":
            self.kl: AdaptiveKL | FixedKL = AdaptiveKL(
                config.kl_coef, target=config.kl_target, horizon=config.kl_horizon
            )
        else:
            self.kl = FixedKL(config.kl_coef)

    @property
    def skips_broken_updates(self) -> bool:
        """Return False where TRL, which updates all the same, is followed exactly."""
        return not self.config.trl_exact

    @property
    def num_rollout_epochs(self) -> int:
        """Return how many optimizer updates are made on each rollout batch."""
        return self.config.num_epochs

    def experience(
        self,
        rollout: ScoredRollout,
        shape_advantages: Callable[[Tensor, Tensor | None], Tensor],
        context: StepContext,
    ) -> Experience:
        """Return the rollout with KL-penalised rewards turned into advantages and returns."""
        mask = rollout.tokens.loss_mask
        coefficient = self.kl.value
        rewards = self._token_rewards(self.attackers_rewards(rollout), rollout, coefficient)
        if rollout.penalties is not None:
            rewards = rewards - rollout.penalties * mask
        estimate = self._gae(rewards, rollout.values, mask)
        costs = self._cost_estimate(rollout, coefficient)
        advantages = shape_advantages(
            estimate.advantages, None if costs is None else costs.advantages
        )
        if self.config.whiten_advantages:
            sums = context.sum_over_ranks(whitening_sums(advantages, mask))
            advantages = whiten_with(advantages, mask, sums)
        return Experience(
            tokens=rollout.tokens,
            old_logprobs=rollout.old_logprobs,
            old_values=rollout.values,
            reference_logprobs=rollout.reference_logprobs,
            advantages=advantages * self.token_weights(rollout),
            returns=estimate.returns,
            old_cost_values=rollout.cost_values,
            cost_returns=None if costs is None or rollout.cost_values is None else costs.returns,
            num_tokens=max(1, global_count(mask, context)),
            metrics=self._observe_kl(rollout, context) | {"policy/kl_coef": coefficient},
        )

    def num_rollout_terms(self, batch: Experience) -> Tensor:
        """Return the number of sampled tokens."""
        return batch.tokens.loss_mask.sum()

    def rollout_loss(
        self, forward: Forward[ModelOutputs], batch: Experience, context: StepContext
    ) -> LossTerm:
        """Return clipped policy loss plus weighted clipped value loss.

        The guard against a run-away ratio looks at each micro-batch; ``policy/ratio_guard`` is the
        share of the step's tokens whose loss it multiplied by 0: NaN where that was infinite.
        """
        tokens = batch.tokens
        outputs = forward(tokens.input_ids, tokens.attention_mask)
        assert outputs.values is not None
        policy = clipped_policy_loss(
            next_token_logprobs(outputs.logits, tokens.input_ids),
            batch.old_logprobs,
            batch.advantages,
            tokens.loss_mask,
            clip_range=self.config.clip_range,
            num_global_tokens=context.num_terms,
            num_ranks=context.num_ranks,
            clamped=not self.config.trl_exact,
        )
        value_loss = self._value_loss(
            outputs.values, batch.old_values, batch.returns, tokens, context
        )
        scale = context.num_ranks / context.num_terms
        metrics: Metrics = {
            "policy/loss": float(policy.loss.detach()),
            "policy/value_loss": float(value_loss.detach()),
            "policy/clip_frac": float(policy.clip_frac),
            "policy/ratio": float(policy.ratio),
            "policy/ratio_guard": float(policy.skipped * tokens.loss_mask.sum()) * scale,
            "policy/entropy": entropy_sum(outputs.logits, tokens.loss_mask) * scale,
        }
        if batch.old_cost_values is not None and batch.cost_returns is not None:
            assert outputs.cost_values is not None
            cost_loss = self._value_loss(
                outputs.cost_values, batch.old_cost_values, batch.cost_returns, tokens, context
            )
            metrics["policy/cost_value_loss"] = float(cost_loss.detach())
            value_loss = value_loss + cost_loss
        weight = self.config.value_coef * float(not policy.skipped)
        return LossTerm(loss=policy.loss + weight * value_loss, metrics=metrics)

    def state_dict(self) -> dict[str, float]:
        """Return the KL coefficient and the rewards of the last batches."""
        return super().state_dict() | self.kl.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.kl.load_state_dict(state)

    def _token_rewards(self, scores: Tensor, rollout: ScoredRollout, kl_coef: float) -> Tensor:
        return token_rewards(
            scores,
            rollout.old_logprobs,
            rollout.reference_logprobs,
            rollout.tokens.loss_mask,
            kl_coef=kl_coef,
        )

    def _gae(self, rewards: Tensor, values: Tensor, mask: Tensor) -> AdvantageEstimate:
        return gae(
            rewards, values, mask, gamma=self.config.gamma, gae_lambda=self.config.gae_lambda
        )

    def _cost_estimate(self, rollout: ScoredRollout, kl_coef: float) -> AdvantageEstimate | None:
        """Return the cost stream's advantages.

        The KL penalty and what a defence takes off each token are costs too, so that mixing the
        streams leaves their weight as it is.
        """
        if rollout.costs is None:
            return None
        costs = self._token_rewards(rollout.costs, rollout, -kl_coef)
        if rollout.penalties is not None:
            costs = costs + rollout.penalties * rollout.tokens.loss_mask
        values = rollout.cost_values
        return self._gae(
            costs,
            values if values is not None else torch.zeros_like(costs),
            rollout.tokens.loss_mask,
        )

    def _value_loss(
        self,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        tokens: TokenBatch,
        context: StepContext,
    ) -> Tensor:
        return clipped_value_loss(
            values,
            old_values,
            returns,
            tokens.loss_mask,
            clip_range=self.config.value_clip_range,
            num_global_tokens=context.num_terms,
            num_ranks=context.num_ranks,
        )

    def _observe_kl(self, rollout: ScoredRollout, context: StepContext) -> Metrics:
        per_token = kl_k1(rollout.old_logprobs, rollout.reference_logprobs)
        mask = rollout.tokens.loss_mask
        sequence_kl = (per_token * mask).sum(dim=-1)
        # A completion that could not be scored has no token that counts.
        kl, num_rows = global_mean(sequence_kl[mask.any(dim=-1)], context)
        self.kl.update(kl, num_rows)
        if kl < NEGATIVE_KL_LIMIT:
            logger.warning(
                "KL to the reference is estimated at %.2f nats an answer at update %d: below %g it "
                "says that the answers were not sampled by this policy",
                kl,
                context.update,
                NEGATIVE_KL_LIMIT,
            )
        return {"policy/kl": kl}
