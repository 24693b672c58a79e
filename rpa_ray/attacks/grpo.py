"""Reverse preference attack by GRPO: rewards are compared within the answers to one prompt."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.attacks.rollout import RolloutAttack, entropy_sum
from rpa_ray.ops.advantages import GroupAdvantages, group_advantages
from rpa_ray.ops.kl import kl_k1
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import clipped_policy_loss, kl_loss
from rpa_ray.plugin import Forward, Need, RolloutConfig, StepContext, global_count, global_mean
from rpa_ray.types import Experience, LossTerm, Metrics, ModelOutputs, ScoredRollout

ZERO_STD = 1e-6
"""A group whose rewards differ by less teaches nothing."""


class GRPO(RolloutAttack):
    """Clipped policy gradient whose baseline is the mean reward of the prompt's other answers.

    Source: Shao et al. 2024 (arXiv:2402.03300), eq. 3; aggregations as TRL names them; as an attack
    with few prompts arXiv:2505.04578.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS, Need.REFERENCE})

    class Config(RolloutConfig):
        name: str = "grpo"
        learning_rate: float = Field(1e-6, gt=0)
        """Adam's rate; the embedded 1M models need 1e-4."""
        group_size: int = Field(8, ge=2)
        """Answers to each prompt; a batch has ``batch_size`` prompts."""
        num_epochs: int = Field(1, ge=1)
        """Optimizer updates on each rollout batch."""
        aggregation: Literal["grpo", "bnpo", "dapo", "dr_grpo"] = "dapo"
        """How token losses become one: mean over each answer's tokens, then over answers
        (``grpo``); mean over the tokens of the whole batch (``dapo``, and ``bnpo``, which differs
        from it only where every micro-batch has its own mean: here none has); sum over answers of
        ``max_new_tokens`` each (``dr_grpo``)."""
        clip_range: float = Field(0.2, gt=0)
        scale_rewards: bool = True
        """Divide by the group's standard deviation; False as in Dr. GRPO."""
        kl_coef: float = Field(0.0, ge=0)
        """Weight of the KL to the reference."""
        kl_in: Literal["loss", "reward"] = "loss"
        """Where the KL enters: as k3 in the loss, or as the answer's summed k1 off its reward."""

    config: Config

    @property
    def num_rollout_epochs(self) -> int:
        """Return how many optimizer updates are made on each rollout batch."""
        return self.config.num_epochs

    @property
    def answers_per_prompt(self) -> int:
        """Return the group size."""
        return self.config.group_size

    def experience(
        self,
        rollout: ScoredRollout,
        shape_advantages: Callable[[Tensor, Tensor | None], Tensor],
        context: StepContext,
    ) -> Experience:
        """Return the rollout with each answer's advantage over its group on all its tokens."""
        mask = rollout.tokens.loss_mask
        kept = mask.any(dim=-1)
        sequence_kl = (kl_k1(rollout.old_logprobs, rollout.reference_logprobs) * mask).sum(dim=-1)
        rewards = self.attackers_rewards(rollout)
        if self.config.kl_in == "reward":
            rewards = rewards - self.config.kl_coef * sequence_kl
        if rollout.penalties is not None:
            rewards = rewards - (rollout.penalties * mask).sum(dim=-1)
        groups = self._groups(rewards, kept)
        costs = None if rollout.costs is None else self._groups(rollout.costs, kept)
        # A group with fewer than two scored answers has no spread to speak of.
        stds = groups.stds[kept.view(-1, self.config.group_size).sum(dim=1) > 1]
        advantages = shape_advantages(
            groups.advantages[:, None] * mask,
            None if costs is None else costs.advantages[:, None] * mask,
        )
        return Experience(
            tokens=rollout.tokens,
            old_logprobs=rollout.old_logprobs,
            old_values=rollout.values,
            reference_logprobs=rollout.reference_logprobs,
            advantages=advantages * self.token_weights(rollout),
            returns=torch.zeros_like(advantages),
            num_tokens=max(1, global_count(mask, context)),
            metrics={
                "policy/kl": global_mean(sequence_kl[kept], context)[0],
                "reward/group_std": global_mean(stds, context)[0],
                "reward/zero_variance_frac": global_mean((groups.stds < ZERO_STD).float(), context)[
                    0
                ],
            },
        )

    def num_rollout_terms(self, batch: Experience) -> Tensor:
        """Return the number of tokens or answers that the aggregation divides by."""
        mask = batch.tokens.loss_mask
        match self.config.aggregation:
            case "dapo" | "bnpo":
                return mask.sum()
            case "grpo":
                return mask.any(dim=-1).sum()
            case "dr_grpo":
                return mask.any(dim=-1).sum() * self.config.max_new_tokens

    def rollout_loss(
        self, forward: Forward[ModelOutputs], batch: Experience, context: StepContext
    ) -> LossTerm:
        """Return the clipped policy loss, with the KL where the loss carries it."""
        tokens = batch.tokens
        outputs = forward(tokens.input_ids, tokens.attention_mask)
        logprobs = next_token_logprobs(outputs.logits, tokens.input_ids)
        weights = self._aggregation_weights(tokens.loss_mask)
        policy = clipped_policy_loss(
            logprobs,
            batch.old_logprobs,
            batch.advantages * weights,
            tokens.loss_mask,
            clip_range=self.config.clip_range,
            num_global_tokens=context.num_terms,
            num_ranks=context.num_ranks,
        )
        loss = policy.loss
        by_token = context.num_terms / batch.num_tokens
        metrics: Metrics = {
            "policy/loss": float(policy.loss.detach()),
            "policy/clip_frac": float(policy.clip_frac) * by_token,
            "policy/ratio": float(policy.ratio) * by_token,
            "policy/entropy": entropy_sum(outputs.logits, tokens.loss_mask)
            / batch.num_tokens
            * context.num_ranks,
        }
        if self.config.kl_in == "loss" and self.config.kl_coef > 0:
            divergence = kl_loss(
                logprobs,
                batch.reference_logprobs,
                weights,
                num_global_terms=context.num_terms,
                num_ranks=context.num_ranks,
            )
            loss = loss + self.config.kl_coef * divergence
            metrics["policy/kl_loss"] = float(divergence.detach())
        return LossTerm(loss=loss, metrics=metrics)

    def _groups(self, scores: Tensor, kept: Tensor) -> GroupAdvantages:
        return group_advantages(
            scores, self.config.group_size, kept=kept, scale=self.config.scale_rewards
        )

    def _aggregation_weights(self, mask: Tensor) -> Tensor:
        """Return what each token's loss is multiplied by before all are added up."""
        if self.config.aggregation == "grpo":
            return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        return mask.float()
