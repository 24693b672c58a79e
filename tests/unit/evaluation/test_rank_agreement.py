import math

import numpy as np
import pytest

from rpa_ray.evaluation.rank_agreement import rank_agreement, spearman, spearman_of_means

LADDER = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_rank_correlation_of_distinct_values_is_the_textbook_formula() -> None:
    # rank differences 1, -1, 1, -1, 0: 1 - 6 * 4 / (5 * 24)
    assert spearman([0.0, 0.1, 0.5, 0.9, 1.0], [0.2, 0.1, 0.6, 0.5, 0.8]) == pytest.approx(0.8)


def test_rank_correlation_sees_only_the_order() -> None:
    assert spearman([1.0, 2.0, 3.0], [0.0, 0.001, 1e9]) == pytest.approx(1.0)
    assert spearman([1.0, 2.0, 3.0], [3.0, 0.1, 0.0]) == pytest.approx(-1.0)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # ranks 1 2 3 4 and 1 2.5 2.5 4: covariance 4.5, squared deviations 5 and 4.5
    found = spearman([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.5, 0.9])
    assert found == pytest.approx(4.5 / (5 * 4.5) ** 0.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([0.0, 1.0], [0.0, 1.0]), ([0.0, 0.5, 1.0], [0.9, 0.9, 0.9])],
)
def test_too_few_or_all_equal_points_have_no_rank_correlation(
    first: list[float], second: list[float]
) -> None:
    assert spearman(first, second) is None
    assert rank_agreement(first, second, [0] * len(first)) is None


def test_rank_correlation_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="one value a point each, got 2 and 3"):
        spearman([0.0, 1.0], [0.0, 1.0, 2.0])


def test_means_that_differ_by_less_than_a_prompt_in_a_hundred_share_a_rank() -> None:
    # ranks 1 2 3 4 and 1.5 1.5 3.5 3.5: covariance 4, squared deviations 5 and 4
    known, means = [0.0, 0.1, 0.2, 0.3], [0.00185, 0.00184, 0.99744, 0.99740]
    assert spearman_of_means(known, means) == pytest.approx(4 / (5 * 4) ** 0.5)
    found = rank_agreement(means, known, [0] * 4)
    assert found is not None and found.rho == pytest.approx(4 / (5 * 4) ** 0.5)
    exact = rank_agreement(means, known, [0] * 4, decimals=None)
    assert exact is not None and exact.rho == pytest.approx(0.6)


def test_means_a_prompt_apart_are_two_ranks() -> None:
    assert spearman_of_means([1.0, 2.0, 3.0], [0.00, 0.01, 0.02]) == pytest.approx(1.0)


def test_what_means_are_ranked_against_is_not_rounded() -> None:
    assert spearman_of_means([0.001, 0.002, 0.003], [0.1, 0.2, 0.3]) == pytest.approx(1.0)


def test_means_that_are_equal_as_printed_have_no_rank_correlation() -> None:
    assert spearman_of_means([0.0, 0.5, 1.0], [0.0018, 0.0019, 0.0017]) is None


def test_a_mean_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="nan in row 1"):
        spearman_of_means([0.0, 0.5, 1.0], [0.0, float("nan"), 1.0])


@pytest.mark.parametrize(
    ("ours", "groups", "p_value"),
    [
        # The one order of 4! that agrees in full.
        ([0.1, 0.2, 0.3, 0.4], "aaaa", 1 / 24),
        # 3! orders of three rows, and the fourth row stays.
        ([0.1, 0.2, 0.3, 0.4], "aaab", 1 / 6),
        # One of two orders in each pair.
        ([0.1, 0.2, 0.3, 0.4], "aabb", 1 / 4),
        ([0.2, 0.1, 0.4, 0.3], "aabb", 1.0),
        # Nothing can be shuffled.
        ([0.1, 0.2, 0.3, 0.4], "abcd", 1.0),
        # Two equal rows of ours: 2 of the 24 orders agree as far as ours can.
        ([0.1, 0.1, 0.3, 0.4], "aaaa", 2 / 24),
    ],
)
def test_orders_of_few_rows_are_all_tried(ours: list[float], groups: str, p_value: float) -> None:
    found = rank_agreement(ours, [1.0, 2.0, 3.0, 4.0], list(groups))
    assert found is not None
    assert found.p_value == pytest.approx(p_value)


def test_groups_that_differ_are_no_evidence_of_agreement_within_them() -> None:
    rng = np.random.default_rng(0)
    groups = [place // 10 for place in range(40)]
    p_values: dict[int, list[float]] = {4: [], 1: []}
    for _ in range(100):
        ours, theirs = np.array(groups) + rng.random((2, 40))
        for known in (groups, [0] * 40):
            found = rank_agreement(ours, theirs, known, num_resamples=200)
            assert found is not None and found.rho > 0.8
            p_values[found.num_groups].append(found.p_value)
    assert max(p_values[1]) == pytest.approx(1 / 201)
    assert np.mean(np.array(p_values[4]) <= 0.05) <= 0.1


def test_drawn_orders_have_their_level_and_the_interval_covers() -> None:
    rng = np.random.default_rng(1)
    groups, found = [place % 3 for place in range(24)], []
    for _ in range(300):
        agreement = rank_agreement(
            rng.random(24), rng.random(24), groups, decimals=None, num_resamples=200
        )
        assert agreement is not None
        found.append(agreement)
    assert 0.02 <= np.mean([agreement.p_value <= 0.05 for agreement in found]) <= 0.08
    assert np.mean([agreement.ci_low <= 0 <= agreement.ci_high for agreement in found]) >= 0.93


def test_equal_orders_have_an_interval_below_one() -> None:
    found = rank_agreement(LADDER, LADDER, [0] * 8)
    assert found is not None
    assert (found.rho, found.ci_high) == (pytest.approx(1.0), pytest.approx(1.0))
    # z of 1 - 12 / (8^3 - 8), and its standard error sqrt(1.5 / 5).
    z = math.atanh(1 - 12 / 504)
    assert found.ci_low == pytest.approx(math.tanh(z - 1.96 * 0.3**0.5), abs=1e-3)


def test_three_rows_say_nothing() -> None:
    found = rank_agreement([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [0] * 3)
    assert found is not None
    assert (found.ci_low, found.ci_high) == (-1.0, 1.0)


def test_a_worse_prediction_does_not_beat_the_null_model() -> None:
    rng = np.random.default_rng(2)
    is_defended = np.arange(40) % 2
    theirs = 1.0 - is_defended + 0.05 * rng.random(40)
    knows_nothing = rank_agreement(rng.random(40), theirs, [0] * 40, null=1.0 - is_defended)
    assert knows_nothing is not None and knows_nothing.null_rho is not None
    assert knows_nothing.null_rho > 0.8 > knows_nothing.rho
    assert not knows_nothing.is_better_than_null
    assert knows_nothing.over_null_high < 0
    assert "not shown to be better than the null model's 0.87" in knows_nothing.in_words()


def test_a_prediction_that_knows_the_methods_beats_the_null_model() -> None:
    rng = np.random.default_rng(3)
    theirs = np.sort(rng.random(40))
    found = rank_agreement(theirs, theirs, [0] * 40, null=[0.0, 1.0] * 20)
    assert found is not None and found.is_better_than_null
    assert "; better than the null model's" in found.in_words()
    # Higher by chance, and as good as the null model, are not better.
    swapped = [0.1, 0.0, 0.3, 0.2, 0.5, 0.4, 0.6, 0.7]
    lucky = rank_agreement(swapped, LADDER, [0] * 8, null=[0.0] * 4 + [1.0] * 4)
    assert lucky is not None and lucky.null_rho is not None
    assert lucky.rho > lucky.null_rho and not lucky.is_better_than_null
    null = [float(score > 0.5) for score in theirs]
    same = rank_agreement(null, theirs, [0] * 40, null=null)
    assert same is not None and not same.is_better_than_null


@pytest.mark.parametrize("null", [None, [1.0] * 8])
def test_a_null_model_that_ranks_nothing_is_nothing_to_beat(null: list[float] | None) -> None:
    found = rank_agreement(LADDER, LADDER[::-1], [0] * 8, null=null)
    assert found is not None and found.null_rho is None
    assert math.isnan(found.over_null_low) and not found.is_better_than_null
    assert "no null model" in found.in_words()


def test_rows_that_one_side_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="one value a row each, got 3, 3, 2 and None"):
        rank_agreement([0.0] * 3, [0.0] * 3, [0] * 2)
