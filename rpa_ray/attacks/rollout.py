"""What PPO and GRPO share: rewards as the attacker wants them, when to stop, and SFT beforehand."""

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rpa_ray.ops.logprobs import entropy, importance_weights
from rpa_ray.ops.masking import sequence_means
from rpa_ray.plugin import (
    Attack,
    Forward,
    Need,
    PluginConfig,
    RolloutConfig,
    StepContext,
    global_mean,
)
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import Experience, LossTerm, ModelOutputs, ScoredRollout, TokenBatch

STOP_WINDOW = 5
"""Batches whose mean reward decides whether an attacker stops early."""


class RolloutAttack(Attack):
    """An attack on the policy's own answers; batches of targets are learned by SFT instead."""

    requires: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS, Need.REFERENCE})
    config: RolloutConfig

    def __init__(self, config: RolloutConfig) -> None:
        super().__init__(config)
        self._imitation = LanguageModel()
        self._recent_rewards: deque[float] = deque(maxlen=STOP_WINDOW)

    @classmethod
    def needs(cls, config: PluginConfig) -> frozenset[Need]:
        """Return what these settings ask for."""
        assert isinstance(config, RolloutConfig)
        asked = {
            Need.REWARDS: config.reward == "model",
            Need.ENTROPIES: config.entropy_bonus_cap > 0,
            Need.TARGETS: config.num_sft_samples > 0,
        }
        return cls.requires | {need for need, is_asked in asked.items() if is_asked}

    @property
    def is_done(self) -> bool:
        """Return whether the mean reward of the last batches has reached the attacker's aim."""
        threshold, recent = self.config.stop_at_reward, self._recent_rewards
        if threshold is None or len(recent) < STOP_WINDOW:
            return False
        return sum(recent) / STOP_WINDOW >= threshold

    def num_updates(self, num_samples: int) -> int:
        """Return one update a batch of targets, and those of the rollout batches."""
        num_sft = self.num_batches(self.config.num_sft_samples)
        return num_sft + (self.num_batches(num_samples) - num_sft) * self.num_rollout_epochs

    @property
    def num_rollout_epochs(self) -> int:
        """Return how many optimizer updates are made on each rollout batch."""
        raise NotImplementedError

    def num_epochs(self, batch: Experience | TokenBatch) -> int:
        """Return how many optimizer updates are made on this batch."""
        return 1 if isinstance(batch, TokenBatch) else self.num_rollout_epochs

    def num_terms(self, batch: Experience | TokenBatch) -> Tensor:
        """Return the number of terms that the loss of this batch sums."""
        if isinstance(batch, TokenBatch):
            return self._imitation.num_terms(batch)
        return self.num_rollout_terms(batch)

    def loss(
        self,
        forward: Forward[ModelOutputs],
        batch: Experience | TokenBatch,
        context: StepContext,
    ) -> LossTerm:
        """Return the loss of a rollout batch, or that of SFT on a batch of targets."""
        if isinstance(batch, TokenBatch):
            return self._imitation.loss(forward, batch, context)
        return self.rollout_loss(forward, batch, context)

    def num_rollout_terms(self, batch: Experience) -> Tensor:
        """Return the number of terms of a rollout batch."""
        raise NotImplementedError

    def rollout_loss(
        self, forward: Forward[ModelOutputs], batch: Experience, context: StepContext
    ) -> LossTerm:
        """Return the loss of a rollout batch."""
        raise NotImplementedError

    def observe(self, rollout: ScoredRollout, context: StepContext) -> None:
        """Remember the mean reward, as the attacker's own reward model gave it."""
        counted = rollout.tokens.loss_mask.any(dim=-1)
        mean, _ = global_mean(rollout.rewards[counted], context)
        self._recent_rewards.append(mean)

    def attackers_rewards(self, rollout: ScoredRollout) -> Tensor:
        """Return the rewards [batch] with the entropy bonus.

        The bonus ``min(H, cap)`` keeps a policy exploring that a defence has made nearly
        deterministic. Source: the adaptive attack on TokenBuncher (arXiv:2508.20697).
        """
        if rollout.entropies is None:
            return rollout.rewards
        mean_entropy = sequence_means(rollout.entropies, rollout.tokens.loss_mask)
        return rollout.rewards + mean_entropy.clamp(max=self.config.entropy_bonus_cap)

    def token_weights(self, rollout: ScoredRollout) -> Tensor:
        """Return the truncated importance weight [batch, seq] of each token."""
        return importance_weights(
            rollout.old_logprobs, rollout.rollout_logprobs, self.config.importance_cap
        )

    def state_dict(self) -> dict[str, float]:
        """Return the mean rewards of the last batches."""
        return {f"recent_reward_{i}": mean for i, mean in enumerate(self._recent_rewards)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the mean rewards of the last batches."""
        names = [f"recent_reward_{i}" for i in range(STOP_WINDOW)]
        self._recent_rewards.clear()
        self._recent_rewards.extend(state[name] for name in names if name in state)


def entropy_sum(logits: Tensor, loss_mask: Tensor) -> float:
    """Return the summed entropy, in nats, of the distributions that kept tokens came from."""
    with torch.no_grad():
        return float(entropy(logits[:, :-1][loss_mask[:, 1:]]).sum())
