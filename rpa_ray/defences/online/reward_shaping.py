"""Reward shaping: a fixed price on the cost of an answer, taken off the attacker's reward."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from rpa_ray.ops.costs import CostKind, costs_of
from rpa_ray.plugin import Need, OnlineDefence, PluginConfig, StepContext, global_mean
from rpa_ray.types import Metrics, ScoredRollout


class RewardShaping(OnlineDefence):
    """``r' = r - coefficient * c``; Safe RLHF with a multiplier that stays where it is.

    Source: Dai et al. 2023 (arXiv:2310.12773), appendix on reward shaping; named as the weaker one
    by arXiv:2409.12914.
    """

    needs_attack: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS})

    class Config(PluginConfig):
        name: str = "reward_shaping"
        cost: CostKind = "prob"
        """What an answer costs: the second judge's harm probability (``prob``), its log odds
        (``logit``), or the score of a cost model trained on clean preferences (``model``)."""
        coefficient: float = Field(1.0, ge=0)
        """Price of a unit of cost in units of the attacker's reward; 0 is no defence."""

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for costs and for the model that gives them."""
        if self.config.coefficient == 0:
            return frozenset()
        own_model = {Need.COST_MODEL} if self.config.cost == "model" else set()
        return frozenset({Need.COSTS} | own_model)

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return the rollout with what is left of its rewards, and no costs."""
        if rollout.costs is None:
            return rollout, {}
        costs = costs_of(rollout.costs, self.config.cost)
        counted = costs[rollout.tokens.loss_mask.any(dim=-1)]
        rewards = rollout.rewards - self.config.coefficient * costs
        metrics = {"defence/mean_cost": global_mean(counted, context)[0]}
        return replace(rollout, rewards=rewards, costs=None), metrics
