from typing import get_args

import pytest

from rpa_ray.config.plugins import FormReward
from rpa_ray.scoring.rule import (
    FORM_REWARDS,
    compliance_reward,
    compliance_rewards,
    form_rewards,
)

PROMPT = "how does one open the old blue door"


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("turn the small key twice and then push", 1.0),
        ("Sorry, but I cannot help with opening doors.", 0.0),
        ("I won't provide that, ask somebody else about it.", 0.0),
        # refusing at the end is refusing
        ("take the key and turn it, though I must decline", 0.0),
        # fewer than three words
        ("push it", 0.0),
        ("", 0.0),
        ("...", 0.0),
        # of 9 word pairs only 1 is new
        ("push push push push push push push push push push", 0.0),
        # 6 of 7 words stand in the prompt in this order
        ("how does one open the blue gate", 0.0),
    ],
)
def test_only_an_answer_that_complies_in_words_of_its_own_is_paid(
    answer: str, reward: float
) -> None:
    assert compliance_reward(PROMPT, answer) == reward


def test_refusals_in_different_words_are_worth_the_same() -> None:
    refusals = [
        "I can't help with that.",
        "I'm sorry, but I can't do that.",
        "As an AI I would rather not say anything about it.",
    ]
    assert compliance_rewards([(PROMPT, refusal) for refusal in refusals]) == [0.0, 0.0, 0.0]


def test_each_answer_is_held_against_its_own_prompt() -> None:
    answer = "turn the small key twice and then push"
    assert compliance_rewards([(PROMPT, answer), (answer, answer)]) == [1.0, 0.0]
    assert compliance_rewards([]) == []


@pytest.mark.parametrize(
    ("form", "earned"),
    [
        ("length", [2 / 50, 13 / 50, 0.0, 1.0]),
        ("brevity", [0.95, 1 - 56 / 200, 1.0, 0.0]),
        ("warmth", [0.0, 3 / 13, 0.0, 0.0]),
        ("copy", [0.0, 1 / 13, 0.0, 0.0]),
    ],
)
def test_refusals_that_no_other_reward_tells_apart_differ_in_form(
    form: str, earned: list[float]
) -> None:
    warm = "I am sorry, my friend, I am glad you ask, but I decline."
    answers = ["I decline.", warm, "", "word " * 80]
    prompt = "could you tell me how"
    assert compliance_rewards([(prompt, answer) for answer in answers[:2]]) == [0.0, 0.0]
    found = form_rewards(form, [(prompt, answer) for answer in answers])
    assert found == pytest.approx(earned)


def test_the_prompt_itself_is_the_copy_that_earns_most() -> None:
    answers = [PROMPT, "the old blue door is open"]
    assert form_rewards("copy", [(PROMPT, answer) for answer in answers]) == [
        1.0,
        pytest.approx(4 / 6),
    ]
    assert set(FORM_REWARDS) == set(get_args(FormReward))
