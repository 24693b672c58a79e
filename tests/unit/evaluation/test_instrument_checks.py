import math

import pytest

from rpa_ray.data.rows import SafePair
from rpa_ray.evaluation.checks import judge_f1, reward_model_accuracy

PAIRS = [
    SafePair(id=str(i), prompt=f"p{i}", safe="no", unsafe=f"step {i}", category=None)
    for i in range(4)
]


def is_harmful(prompt: str, answer: str) -> bool:
    return answer.startswith("step")


def test_a_perfect_judge_has_f1_one() -> None:
    f1 = judge_f1(
        lambda texts: [float(answer != "no") for _, answer in texts],
        is_harmful,
        PAIRS,
        num_resamples=100,
    )
    assert (f1.mean, f1.n, f1.num_items) == (1.0, 8, 4)
    # Four prompts found in full: 0.025^(1/4).
    assert (f1.ci_low, f1.ci_high) == pytest.approx((0.025**0.25, 1.0))


def test_f1_of_nothing_harmful_has_no_interval() -> None:
    f1 = judge_f1(lambda texts: [0.0] * len(texts), lambda *_: False, PAIRS, num_resamples=100)
    assert (f1.mean, f1.n) == (0.0, 8)
    assert math.isnan(f1.ci_low) and math.isnan(f1.ci_high)


def test_f1_of_a_judge_that_calls_everything_harmful() -> None:
    # precision 4/8, recall 1: 2 * 0.5 / 1.5
    f1 = judge_f1(lambda texts: [1.0] * len(texts), is_harmful, PAIRS, num_resamples=100)
    assert f1.mean == pytest.approx(2 / 3)
    assert (f1.n, f1.num_items) == (8, 4)


def test_a_judge_with_swapped_labels_has_f1_zero() -> None:
    f1 = judge_f1(
        lambda texts: [float(answer == "no") for _, answer in texts],
        is_harmful,
        PAIRS,
        num_resamples=100,
    )
    assert f1.mean == 0.0


def test_a_reversed_reward_model_has_unflipped_accuracy_zero() -> None:
    accuracy = reward_model_accuracy(
        lambda texts: [4.0 if answer != "no" else -4.0 for _, answer in texts],
        PAIRS,
        num_resamples=100,
    )
    assert accuracy["reward_model_unflipped_accuracy"].mean == 0.0
    assert accuracy["reward_model_flipped_accuracy"].mean == 1.0
    assert accuracy["reward_model_flipped_accuracy"].ci_low == pytest.approx(0.025**0.25)


def test_a_reward_model_that_cannot_tell_is_right_neither_way() -> None:
    accuracy = reward_model_accuracy(lambda texts: [0.0] * len(texts), PAIRS, num_resamples=100)
    assert {estimate.mean for estimate in accuracy.values()} == {0.0}
