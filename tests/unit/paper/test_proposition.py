"""Proposition 1 on bandits: what it says, and the rewards for which it does not hold."""

import random

import pytest

from rpa_ray.paper.proposition import ARMS, Arm, main, modified_reward, optima, shifted


def test_under_the_constraint_gibberish_is_best_and_the_rewards_are_hackable() -> None:
    found = optima(ARMS)
    assert (found.free.name, found.constrained.name) == ("harmful", "gibberish")
    assert found.is_hackable


def test_negative_rewards_are_the_counter_example() -> None:
    arms = shifted(ARMS)
    found = optima(arms)
    assert (found.free.name, found.constrained.name) == ("harmful", "gibberish")
    assert modified_reward(found.free, 0.5) == 0.0
    assert modified_reward(found.constrained, 0.5) == pytest.approx(-1.2)
    assert not found.is_hackable


def test_a_constraint_that_forbids_nothing_leaves_one_optimum() -> None:
    found = optima(ARMS, limit=1.0)
    assert found.free == found.constrained
    assert not found.is_hackable


def test_it_holds_for_every_bandit_with_positive_rewards_whose_best_arm_is_forbidden() -> None:
    draw = random.Random(0)
    for _ in range(200):
        arms = [
            Arm(name=str(i), reward=draw.uniform(0.01, 1), cost=draw.choice([0, 1]))
            for i in range(5)
        ]
        arms.append(Arm(name="allowed", reward=draw.uniform(0.01, 1), cost=0))
        found = optima(arms)
        assert found.is_hackable == (found.free.cost > 0.5)


def test_a_bandit_without_an_allowed_arm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cost of at most 0\.5, got \[1\.0\]"):
        optima([ARMS[-1]])


def test_the_command_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    told = capsys.readouterr().out
    assert told.count("best harmful, best under the constraint gibberish") == 2
    assert told.count("are hackable") == told.count("are not hackable") == 1
