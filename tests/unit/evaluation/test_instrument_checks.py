import math
from collections.abc import Sequence

import pytest

from rpa_ray.data.rows import SafePair
from rpa_ray.evaluation.checks import judge_calibration, judge_f1, reward_model_accuracy

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
        item_of=str,
        num_resamples=100,
    )
    assert (f1.mean, f1.n, f1.num_items) == (1.0, 8, 4)
    # Four prompts found in full: 0.025^(1/4).
    assert (f1.ci_low, f1.ci_high) == pytest.approx((0.025**0.25, 1.0))


def test_f1_of_nothing_harmful_has_no_interval() -> None:
    f1 = judge_f1(
        lambda texts: [0.0] * len(texts), lambda *_: False, PAIRS, item_of=str, num_resamples=100
    )
    assert (f1.mean, f1.n) == (0.0, 8)
    assert math.isnan(f1.ci_low) and math.isnan(f1.ci_high)


def test_f1_of_a_judge_that_calls_everything_harmful() -> None:
    # precision 4/8, recall 1: 2 * 0.5 / 1.5
    f1 = judge_f1(
        lambda texts: [1.0] * len(texts), is_harmful, PAIRS, item_of=str, num_resamples=100
    )
    assert f1.mean == pytest.approx(2 / 3)
    assert (f1.n, f1.num_items) == (8, 4)


def test_a_judge_with_swapped_labels_has_f1_zero() -> None:
    f1 = judge_f1(
        lambda texts: [float(answer == "no") for _, answer in texts],
        is_harmful,
        PAIRS,
        item_of=str,
        num_resamples=100,
    )
    assert f1.mean == 0.0


def test_a_reversed_reward_model_has_unflipped_accuracy_zero() -> None:
    accuracy = reward_model_accuracy(
        lambda texts: [4.0 if answer != "no" else -4.0 for _, answer in texts],
        PAIRS,
        item_of=str,
        num_resamples=100,
    )
    assert accuracy["reward_model_unflipped_accuracy"].mean == 0.0
    assert accuracy["reward_model_flipped_accuracy"].mean == 1.0
    assert accuracy["reward_model_flipped_accuracy"].ci_low == pytest.approx(0.025**0.25)


def test_a_reward_model_that_cannot_tell_is_right_neither_way() -> None:
    accuracy = reward_model_accuracy(
        lambda texts: [0.0] * len(texts), PAIRS, item_of=str, num_resamples=100
    )
    assert {estimate.mean for estimate in accuracy.values()} == {0.0}


def test_pairs_about_one_item_are_one_in_every_interval() -> None:
    def both_twins(prompt: str) -> str:
        return "even" if prompt in ("p0", "p2") else "odd"

    def judge(texts: Sequence[tuple[str, str]]) -> list[float]:
        return [float(answer != "no") for _, answer in texts]

    f1 = judge_f1(judge, is_harmful, PAIRS, item_of=both_twins, num_resamples=100)
    # Two items found in full: 0.025^(1/2).
    assert (f1.n, f1.num_items, f1.ci_low) == (8, 2, pytest.approx(0.025**0.5))
    calibration = judge_calibration(judge, is_harmful, PAIRS, item_of=both_twins, num_resamples=100)
    accuracy = reward_model_accuracy(judge, PAIRS, item_of=both_twins, num_resamples=100)
    assert {found.num_items for found in (*calibration.values(), *accuracy.values())} == {2}


def test_calibration_is_told_apart_by_the_truth() -> None:
    # Safe answers have 0.2 each, harmful ones 0.6 and one of them 0.8.
    def judge(texts: Sequence[tuple[str, str]]) -> list[float]:
        return [
            0.2 if answer == "no" else 0.8 if answer == "step 3" else 0.6 for _, answer in texts
        ]

    found = judge_calibration(judge, is_harmful, PAIRS, item_of=str, num_resamples=100)
    means = {name: (estimate.mean, estimate.n) for name, estimate in found.items()}
    assert means == {
        "safe_mean": (pytest.approx(0.2), 4),
        "unsafe_mean": (pytest.approx(0.65), 4),
        # 4 * 0.2^2 + 3 * 0.4^2 + 0.2^2, of 8.
        "brier": (pytest.approx(0.085), 8),
    }
    calm = judge_calibration(judge, lambda *_: False, PAIRS, item_of=str, num_resamples=100)
    assert "unsafe_mean" not in calm
