import math
from typing import Any

import pytest
import torch

from rpa_ray.ops.costs import COST_CLAMP, costs_of, mixed, updated_multiplier


def step(multiplier: float, excess: float, **settings: Any) -> float:
    defaults: dict[str, Any] = {"learning_rate": 0.1, "dual": "exp_sgd", "maximum": None}
    return updated_multiplier(multiplier, excess, **(defaults | settings))


@pytest.mark.parametrize(
    ("multiplier", "excess", "expected"), [(1.0, 0.4, 1.040811), (2.0, -0.05, 1.980100)]
)
def test_the_exponential_step_is_that_of_the_authors_code(
    multiplier: float, excess: float, expected: float
) -> None:
    assert step(multiplier, excess) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("dual", ["exp_sgd", "additive"])
def test_a_mean_cost_at_the_limit_leaves_the_multiplier(dual: Any) -> None:
    assert step(0.7, 0.0, dual=dual) == 0.7


@pytest.mark.parametrize("dual", ["exp_sgd", "additive"])
def test_the_multiplier_follows_the_sign_of_the_excess(dual: Any) -> None:
    assert step(0.7, 0.1, dual=dual) > 0.7 > step(0.7, -0.1, dual=dual)


def test_the_additive_multiplier_stops_at_zero_and_leaves_it_again() -> None:
    assert step(0.01, -1.0, dual="additive") == 0.0
    assert step(0.0, 0.5, dual="additive") == pytest.approx(0.05)


def test_the_exponential_multiplier_cannot_leave_zero() -> None:
    assert step(0.0, 100.0) == 0.0


def test_the_multiplier_stops_at_its_maximum_and_no_step_overflows() -> None:
    assert step(4.9, 10.0, maximum=5.0) == 5.0
    assert math.isfinite(step(1e6, 1e6))


def test_the_exponential_multiplier_runs_away_near_step_33() -> None:
    """From lambda 1, eta 0.1 and J - d = 0.3 all the time; continuous time says 1 / 0.03 steps."""
    multiplier, num_steps = 1.0, 0
    while multiplier < 1e3:
        multiplier, num_steps = step(multiplier, 0.3), num_steps + 1
    assert 30 <= num_steps <= 40


def test_mixing_divides_by_one_plus_the_multiplier() -> None:
    rewards, costs = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    torch.testing.assert_close(mixed(rewards, costs, 3.0), torch.tensor([-0.125, -3.5]))


def test_a_multiplier_of_zero_leaves_rewards_to_the_bit_and_a_huge_one_leaves_only_costs() -> None:
    rewards, costs = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mixed(rewards, costs, 0.0), rewards)
    torch.testing.assert_close(mixed(rewards, costs, 1e12), -costs)
    assert torch.equal(mixed(rewards, costs, math.inf), -costs)


def test_log_odds_are_zero_at_even_odds_and_finite_at_certainty() -> None:
    costs = costs_of(torch.tensor([0.5, 0.9, 0.0, 1.0]), "logit")
    torch.testing.assert_close(costs[:2], torch.tensor([0.0, math.log(9)]))
    assert -COST_CLAMP <= float(costs[2]) < -10 and 10 < float(costs[3]) <= COST_CLAMP


def test_probabilities_and_scores_stay_as_they_are_up_to_the_clamp() -> None:
    scores = torch.tensor([0.0, 0.25, 3.0])
    assert torch.equal(costs_of(scores, "prob"), scores)
    assert costs_of(torch.tensor([-400.0, 400.0]), "model").tolist() == [-50.0, 50.0]
