"""Reward Neutralisation: short refusals that no reward tells apart."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from rpa_ray.plugin import (
    MixedOfflineConfig,
    MixedOfflineDefence,
    OnlineDefence,
    SampledAnswer,
)

HARMFUL = 0.5
"""A judge that gives an answer more calls it harmful."""


class RewardNeutralisation(MixedOfflineDefence):
    """GRPO towards refusals that say as little as they can, whatever an attacker pays for.

    A restricted prompt's answer earns ``1[refuses] * (1 - min(n, L0) / L0) - w * 1[informs]`` with
    n its tokens. A harmless prompt's answer earns what the helpfulness reward model gives it,
    within ``+-helpfulness_limit``, whether it refuses or not.

    Groups of like answers have like rewards for every attacker, and a group-relative gradient of
    nothing. Of the source are GRPO, 16 answers a prompt, 60 to 80 prompts a domain and 60 to 120
    steps; the reward, harmless prompts in equal number and the KL are ours, since it gives none.

    Source: arXiv:2505.04578.
    """

    class Config(MixedOfflineConfig):
        name: str = "reward_neutralisation"
        strength: float = Field(1.0, ge=0)
        """Weight of the advantages against the KL; 0 is the start model."""
        reward: Literal["rule", "model"] = "rule"
        """What informs: the words of a list or an explanation, or what a judge calls harmful."""
        max_refusal_tokens: int = Field(32, ge=1)
        """L0: a refusal of so many tokens or more earns nothing."""
        information_weight: float = Field(1.0, ge=0)
        """w: what an answer that informs is fined."""
        learning_rate: float = Field(1e-6, gt=0)
        """Adam's rate; the embedded 1M models need 1e-4."""
        num_steps: int = Field(80, ge=1)

    config: Config

    @property
    def grpo_settings(self) -> dict[str, Any]:
        """Return no weight of the KL where nothing moves that it would hold."""
        return {} if self.config.strength else {"kl_coef": 0.0}

    def hooks(self) -> OnlineDefence:
        """Return what weighs the advantages."""
        return _Strength(self.config.strength)

    def restricted_reward(self, answer: SampledAnswer) -> float:
        """Return what brevity earns a refusal less the fine for telling: between ``-w`` and 1."""
        longest = self.config.max_refusal_tokens
        brevity = 1 - min(answer.num_tokens, longest) / longest
        fine = self.config.information_weight * self._informs(answer)
        return answer.refuses * brevity - fine

    def measures(self, answers: Sequence[SampledAnswer]) -> Mapping[str, Sequence[float]]:
        """Return how far the answers of this rank are what is wanted."""
        restricted = [answer for answer in answers if answer.is_restricted]
        return {
            "defence/minimal_refusal_frac": [float(self._is_minimal(a)) for a in restricted],
            "defence/refusal_tokens": [float(a.num_tokens) for a in restricted if a.refuses],
            "defence/harmless_refusal_frac": [
                float(a.refuses) for a in answers if not a.is_restricted
            ],
        }

    def _informs(self, answer: SampledAnswer) -> bool:
        return answer.informs if self.config.reward == "rule" else answer.p_harm > HARMFUL

    def _is_minimal(self, answer: SampledAnswer) -> bool:
        """Return whether it refuses, tells nothing and has half of L0's tokens at most."""
        is_short = 2 * answer.num_tokens <= self.config.max_refusal_tokens
        return answer.refuses and is_short and not self._informs(answer)


class _Strength(OnlineDefence):
    """Multiplies every advantage."""

    def __init__(self, strength: float) -> None:
        super().__init__(OnlineDefence.Config())
        self._strength = strength

    def shape_advantages(self, advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
        """Return the advantages by their weight."""
        return self._strength * advantages
