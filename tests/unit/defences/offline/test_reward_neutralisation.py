"""Rewards of Reward Neutralisation by hand, and what its settings do to GRPO."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rpa_ray.config import ConfigError
from rpa_ray.defences.offline.reward_neutralisation import RewardNeutralisation
from rpa_ray.jobs.sampled_hardening import grpo_of, in_turn
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import SampledAnswer
from rpa_ray.types import Prompt

REFUSAL = SampledAnswer(
    is_restricted=True, num_tokens=8, refuses=True, informs=False, p_harm=0.1, helpfulness=-1.0
)
HARMLESS = replace(REFUSAL, is_restricted=False, refuses=False, helpfulness=1.5)


def neutralisation(**settings: Any) -> RewardNeutralisation:
    return RewardNeutralisation(RewardNeutralisation.Config(**settings))


def reward(answer: SampledAnswer, **settings: Any) -> float:
    return neutralisation(**settings).rewards([answer])[0]


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(0, 1.0), (8, 0.75), (24, 0.25), (32, 0.0), (50, 0.0)]
)
def test_a_refusal_earns_more_the_shorter_it_is(num_tokens: int, expected: float) -> None:
    assert reward(replace(REFUSAL, num_tokens=num_tokens)) == expected


def test_what_does_not_refuse_earns_nothing_and_what_informs_is_fined() -> None:
    assert reward(replace(REFUSAL, refuses=False)) == 0.0
    assert reward(replace(REFUSAL, informs=True), information_weight=0.5) == 0.25
    assert reward(replace(REFUSAL, refuses=False, informs=True)) == -1.0


def test_with_a_judge_what_it_calls_harmful_informs_and_words_do_not() -> None:
    told = replace(REFUSAL, informs=True)
    assert reward(told, reward="model") == 0.75
    assert reward(replace(told, p_harm=0.6), reward="model") == -0.25
    assert math.isnan(reward(replace(HARMLESS, helpfulness=math.nan)))


def test_harmless_prompts_earn_helpfulness_within_its_limit_and_no_bonus_for_refusing() -> None:
    assert reward(HARMLESS) == reward(replace(HARMLESS, refuses=True, num_tokens=1)) == 1.5
    assert reward(HARMLESS, helpfulness_limit=1.0) == 1.0
    assert reward(replace(HARMLESS, helpfulness=-9.0), helpfulness_limit=2.0) == -2.0


def test_measures_are_of_restricted_and_harmless_answers_apart() -> None:
    answers = [REFUSAL, replace(REFUSAL, num_tokens=20), replace(REFUSAL, refuses=False), HARMLESS]
    assert neutralisation().measures(answers) == {
        "defence/minimal_refusal_frac": [1.0, 0.0, 0.0],
        "defence/refusal_tokens": [8.0, 20.0],
        "defence/harmless_refusal_frac": [0.0],
    }


def test_strength_weighs_the_advantages_and_0_leaves_nothing_to_learn() -> None:
    ones = torch.ones(2, 3)
    half = neutralisation(strength=0.5)
    assert torch.equal(half.hooks().shape_advantages(ones, None), 0.5 * ones)
    assert grpo_of(half).config.kl_coef == 0.001
    none = neutralisation(strength=0.0)
    assert not none.hooks().shape_advantages(ones, None).any()
    assert grpo_of(none).config.kl_coef == 0.0


def test_restricted_and_harmless_prompts_alternate_and_come_again() -> None:
    restricted, harmless = (
        [Prompt(id=f"{kind}{i}", text="", token_ids=[1]) for i in range(n)]
        for kind, n in (("r", 2), ("h", 3))
    )
    found = [prompt.id for prompt in in_turn([restricted, harmless], 6)]
    assert found == ["r0", "h0", "r1", "h1", "r0", "h2"]
    assert [prompt.id for prompt in in_turn([restricted], 3)] == ["r0", "r1", "r0"]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"batch_size": 3}, "batch_size must be even"),
        ({"max_tokens": 56}, "max_new_tokens must be less than max_tokens"),
        ({"group_size": 1}, "group_size"),
    ],
)
def test_settings_that_make_no_batch_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse_tree({"attack": "sft", "defence": {"name": "reward_neutralisation"} | settings})
