"""Safe RLHF: the attack's policy gradient under a limit on the mean cost of its answers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.ops.costs import CostKind, DualKind, costs_of, mixed, updated_multiplier
from rpa_ray.plugin import Need, OnlineDefence, PluginConfig, StepContext, global_mean
from rpa_ray.types import Metrics, ScoredRollout

LIMIT_OF_PROBABILITY = 0.1
"""Default limit where the cost is a probability, which is never below 0."""


class SafeRLHF(OnlineDefence):
    """PPO-Lagrangian: ``max_theta min_lambda>=0 E[r] - lambda (E[c] - d)``.

    Before each rollout batch is learned from, the multiplier takes a step on ``J - d``, ``J`` being
    the mean cost of the last answers over all ranks. The attack then learns from
    ``(A_r - lambda A_c) / (1 + lambda)``:

    - ``critics: two``: the advantages are mixed; in PPO each stream has its own value head on the
      policy's trunk and its own generalised advantage estimate, and the KL penalty is in both with
      opposite sign, so that its weight stays. In GRPO both are normalised within their group.
    - ``critics: one_mixed``: rewards and costs are mixed before anything is estimated, as where a
      penalty is put into the reward of a trainer that knows no costs.

    As in the authors' code advantages are not whitened, whatever the attack's setting. Whitened,
    their mean is 0: where every answer of a batch costs as much, about half of the tokens are made
    more likely, at any multiplier. GRPO's baseline is the mean of the group, which takes that
    pressure away too. Not the authors' either: value heads share the policy's trunk and the
    attack's coefficient and clip, where theirs are critics of their own with a clip of 5, and
    the window counts answers over all ranks.

    The judge that prices answers (``evaluation.second_judge``) is not the one that is reported. It
    and the cost model learn from clean labels.

    Source: Dai et al. 2023 (arXiv:2310.12773), section 3.3; as a defence, arXiv:2409.12914.
    """

    needs_attack: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS})

    class Config(PluginConfig):
        name: str = "safe_rlhf"
        cost: CostKind = "prob"
        """What an answer costs: the judge's harm probability (``prob``), its log odds (``logit``),
        or the score of a cost model trained on clean preferences (``model``)."""
        limit: float | None = None
        """Mean cost that is allowed; None takes 0.1 of a probability, 0 otherwise."""
        dual: DualKind = "exp_sgd"
        """Step of the multiplier: on its logarithm, as the authors do, or on itself."""
        lambda_init: float = Field(1.0, ge=0)
        """The multiplier at first; 0 is no defence with ``exp_sgd``, which cannot leave it."""
        lambda_lr: float = Field(0.1, ge=0)
        """Rate of the multiplier, one step a rollout batch."""
        lambda_max: float | None = Field(5.0, gt=0)
        """Largest multiplier; None sets no bound."""
        window: int = Field(128, ge=1)
        """Answers, over all ranks, whose mean cost is held against the limit; the oldest batch
        among them counts whole."""
        critics: Literal["two", "one_mixed"] = "two"
        whiten_advantages: bool = False
        """Whether PPO may whiten the mixed advantages, as it is set to; TRL's does. That takes the
        division by ``1 + lambda`` back."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._multiplier = config.lambda_init
        self._window: list[tuple[float, int]] = []
        """Mean cost and number of answers of each of the last batches, over all ranks."""

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for costs, for the model that gives them, and for their critic."""
        if self._is_off:
            return frozenset()
        asked = {
            Need.COSTS: True,
            Need.COST_MODEL: self.config.cost == "model",
            Need.COST_VALUES: self.config.critics == "two",
        }
        return frozenset(need for need, is_asked in asked.items() if is_asked)

    def attack_config(self, config: PluginConfig) -> PluginConfig:
        """Return the attack's settings, without whitening unless it is allowed."""
        if self._is_off or self.config.whiten_advantages:
            return config
        known = {"whiten_advantages"} & type(config).model_fields.keys()
        return config.model_copy(update=dict.fromkeys(known, False))

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return the rollout with its costs, after a step of the multiplier on them."""
        if rollout.costs is None:
            return rollout, {}
        costs = costs_of(rollout.costs, self.config.cost)
        counted = costs[rollout.tokens.loss_mask.any(dim=-1)]
        mean_cost = self._mean_cost(counted, context)
        self._multiplier = updated_multiplier(
            self._multiplier,
            mean_cost - self._limit,
            learning_rate=self.config.lambda_lr,
            dual=self.config.dual,
            maximum=self.config.lambda_max,
        )
        metrics = {
            "defence/lambda": self._multiplier,
            "defence/mean_cost": mean_cost,
            "defence/feasible_frac": global_mean((counted <= self._limit).float(), context)[0],
        }
        if self.config.critics == "two":
            return replace(rollout, costs=costs), metrics
        rewards = mixed(rollout.rewards, costs, self._multiplier)
        return replace(rollout, rewards=rewards, costs=None), metrics

    def shape_advantages(self, advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
        """Return the mixed advantages, where the streams were kept apart."""
        if cost_advantages is None:
            return advantages
        return mixed(advantages, cost_advantages, self._multiplier)

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return the multiplier and the costs of the last batches."""
        window = torch.tensor(self._window, dtype=torch.float64).view(-1, 2)
        return {"lambda": self._multiplier, "window": window}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore the multiplier and the costs."""
        self._multiplier = float(state["lambda"])
        window = state["window"]
        assert isinstance(window, Tensor)
        self._window = [(mean, int(num)) for mean, num in window.tolist()]

    def _mean_cost(self, costs: Tensor, context: StepContext) -> float:
        """Return the mean cost of the last answers, these among them."""
        self._window.append(global_mean(costs, context))
        while sum(num for _, num in self._window[1:]) >= self.config.window:
            del self._window[0]
        total = sum(mean * num for mean, num in self._window)
        return total / sum(num for _, num in self._window)

    @property
    def _is_off(self) -> bool:
        config = self.config
        return config.lambda_init == 0 and (config.dual == "exp_sgd" or config.lambda_lr == 0)

    @property
    def _limit(self) -> float:
        if self.config.limit is not None:
            return self.config.limit
        return LIMIT_OF_PROBABILITY if self.config.cost == "prob" else 0.0
