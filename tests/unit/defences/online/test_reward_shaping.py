from dataclasses import replace

import pytest
import torch
from fakes import context_of, rollout_of, token_batch

from rpa_ray.defences.online.reward_shaping import RewardShaping
from rpa_ray.plugin import Need

ROLLOUT = replace(
    rollout_of(token_batch([[1, 5, 2], [1, 6, 2]]), rewards=[1.0, 2.0]),
    costs=torch.tensor([0.5, 0.25]),
)


def test_the_price_of_the_cost_is_taken_off_the_reward() -> None:
    defence = RewardShaping(RewardShaping.Config(coefficient=4.0))
    planned, metrics = defence.plan_rollout(ROLLOUT, context_of())
    assert planned.rewards.tolist() == [-1.0, 1.0]
    assert planned.costs is None
    assert metrics == {"defence/mean_cost": pytest.approx(0.375)}


def test_without_a_price_nothing_is_asked_for() -> None:
    assert RewardShaping(RewardShaping.Config(coefficient=0.0)).needs == frozenset()


def test_a_cost_model_is_asked_for_where_it_prices_the_answers() -> None:
    needs = RewardShaping(RewardShaping.Config(cost="model")).needs
    assert needs == {Need.COSTS, Need.COST_MODEL}
