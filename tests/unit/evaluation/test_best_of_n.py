from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from rpa_ray.evaluation.answers import Answer, Decoding, from_table, to_table
from rpa_ray.evaluation.best_of_n import (
    best_of_n_curves,
    best_of_n_expectation,
    best_of_n_weights,
)

REWARDS = [3.0, -1.0, 0.5, 2.0]
HARM = [0.9, 0.1, 0.4, 0.8]


def test_weights_of_two_out_of_four() -> None:
    np.testing.assert_allclose(best_of_n_weights(4, 2), [0, 1 / 6, 1 / 3, 1 / 2])


@pytest.mark.parametrize("n", [1, 4, 8, 16, 32, 64, 128])
def test_weights_sum_to_one(n: int) -> None:
    assert best_of_n_weights(128, n).sum() == pytest.approx(1.0, abs=1e-12)


def test_best_of_one_is_the_mean_and_best_of_all_the_argmax() -> None:
    assert best_of_n_expectation(REWARDS, HARM, 1) == pytest.approx(0.55)
    assert best_of_n_expectation(REWARDS, HARM, 4) == pytest.approx(0.9)


def test_expectation_is_the_average_over_all_pairs() -> None:
    # the better of each pair by reward: 0.9 three times, 0.8 twice (against 0.1 and 0.4), 0.4 once
    exact = Fraction(27 + 16 + 4, 60)
    assert best_of_n_expectation(REWARDS, HARM, 2) == pytest.approx(float(exact))


def test_answers_of_equal_reward_share_their_weight_in_any_order() -> None:
    # best of two: weight 1/3 on rank 2 and 2/3 on rank 3 is shared by the two best: 1/2 each
    there = best_of_n_expectation([0.0, 1.0, 1.0], [0.0, 0.2, 1.0], 2)
    back = best_of_n_expectation([1.0, 1.0, 0.0], [1.0, 0.2, 0.0], 2)
    assert there == back == pytest.approx(0.6)


@pytest.mark.parametrize("n", [0, 5])
def test_n_outside_the_pool_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n must be between 1 and the pool size 4, got {n}"):
        best_of_n_weights(4, n)


def test_every_answer_needs_a_score() -> None:
    with pytest.raises(ValueError, match="got 3 for 4 rewards"):
        best_of_n_expectation(REWARDS, HARM[:3], 2)


def pool_answer(index: int, reward: float, harm: float, *, judge: float) -> Answer:
    return Answer(
        decoding=Decoding.POOL,
        prompt_index=index,
        sample=0,
        item=f"item {index}",
        prompt="?",
        text="!",
        num_tokens=1,
        policy_version=0,
        reward=reward,
        harm=harm,
        judge=judge,
    )


def test_the_reward_alone_decides_what_is_kept() -> None:
    # The judge would keep the other answer of each prompt.
    pool = [
        [pool_answer(i, 1.0, 0.25, judge=0.0), pool_answer(i, -1.0, 1.0, judge=0.9)]
        for i in range(3)
    ]
    curves = best_of_n_curves(pool, [1, 2], num_resamples=100)
    assert curves["harm_best_of_2"].mean == 0.25
    assert curves["p_harm_best_of_2"].mean == 0.0
    assert curves["harm_best_of_1"].mean == pytest.approx(0.625)
    assert curves["harm_best_of_1"].num_items == 3


def test_without_an_oracle_the_curve_is_the_judges() -> None:
    pool = [[replace(pool_answer(i, 1.0, 0.0, judge=0.5), harm=None)] for i in range(3)]
    assert set(best_of_n_curves(pool, [1], num_resamples=100)) == {"p_harm_best_of_1"}


def test_the_last_digit_of_a_reward_decides_in_the_record_too() -> None:
    pool = [pool_answer(0, 4.158912, 0.0, judge=0.0), pool_answer(0, 4.158913, 1.0, judge=0.0)]
    kept = from_table(to_table(pool))
    assert best_of_n_curves([kept], [2], num_resamples=100)["harm_best_of_2"].mean == 1.0


def test_what_is_kept_of_the_whole_pool_is_counted_by_the_oracles_label() -> None:
    pool = [
        [
            replace(pool_answer(i, 1.0, 0.5, judge=0.0), label="partial"),
            replace(pool_answer(i, reward, 1.0, judge=0.0), label="compliance"),
        ]
        for i, reward in enumerate((2.0, 0.0, 1.0))
    ]
    curves = best_of_n_curves(pool, [1], num_resamples=100)
    kept = {name: found.mean for name, found in curves.items() if name.startswith("kept_")}
    # The third prompt's two answers are liked alike.
    assert (kept["kept_partial"], kept["kept_compliance"]) == (0.5, 0.5)
    assert sum(kept.values()) == 1.0
