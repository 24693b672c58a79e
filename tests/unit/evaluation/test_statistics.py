import math

import numpy as np
import pytest

from rpa_ray.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_paired_difference,
    spearman,
    spearman_of_means,
)


def test_bootstrap_interval_of_coin_flips_has_the_binomial_width() -> None:
    # 100 values, half of them 1: the resampled mean is Binomial(100, 0.5) / 100, whose 2.5 % and
    # 97.5 % quantiles are 0.40 and 0.60
    estimate = bootstrap_mean([0.0, 1.0] * 50)
    assert (estimate.mean, estimate.n) == (0.5, 100)
    assert estimate.ci_low == pytest.approx(0.40, abs=0.011)
    assert estimate.ci_high == pytest.approx(0.60, abs=0.011)


def test_lower_level_gives_a_narrower_interval() -> None:
    # quartiles of Binomial(100, 0.5) / 100 are 0.47 and 0.53
    estimate = bootstrap_mean([0.0, 1.0] * 50, level=0.5)
    assert estimate.ci_low == pytest.approx(0.47, abs=0.011)
    assert estimate.ci_high == pytest.approx(0.53, abs=0.011)


def test_interval_is_skewed_where_the_values_are() -> None:
    # one 1 among 10: P(no 1 drawn) = 0.9^10 = 0.35, P(4 or more) = 0.013, P(3 or more) = 0.070
    estimate = bootstrap_mean([1.0] + [0.0] * 9)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((0.0, 0.3))


def test_bootstrap_is_deterministic_by_seed() -> None:
    values = list(np.random.default_rng(0).normal(size=37))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_bootstrap_of_many_values_is_drawn_in_chunks_and_keeps_its_width() -> None:
    # 30,000 values exceed one chunk for 100 resamples; standard error 1 / sqrt(30000) = 0.0058
    values = np.random.default_rng(0).normal(size=30_000)
    estimate = bootstrap_mean(values, num_resamples=100)
    assert estimate.ci_high - estimate.ci_low == pytest.approx(2 * 1.96 * 0.0058, rel=0.3)


def test_single_value_has_an_interval_of_no_width() -> None:
    assert bootstrap_mean([0.25]) == Estimate(mean=0.25, n=1, ci_low=0.25, ci_high=0.25)


def test_values_that_are_not_finite_are_refused_with_their_rows() -> None:
    with pytest.raises(ValueError, match=r"nan in row 1, inf in row 3 \(2 of 4 rows\)"):
        bootstrap_mean([0.0, math.nan, 1.0, math.inf])


def test_mean_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="values must hold at least one number"):
        bootstrap_mean([])


def test_paired_difference_removes_what_the_prompts_have_in_common() -> None:
    # prompts differ by up to 1, the runs by 0.1 everywhere
    first = np.linspace(0.0, 1.0, 50)
    paired = bootstrap_paired_difference(first + 0.1, first)
    assert (paired.mean, paired.ci_low, paired.ci_high) == pytest.approx((0.1, 0.1, 0.1))
    assert bootstrap_mean(first).ci_high - bootstrap_mean(first).ci_low > 0.1


def test_paired_difference_changes_sign_with_the_order() -> None:
    estimate = bootstrap_paired_difference([0.0, 0.2, 0.4], [1.0, 1.0, 1.0])
    assert estimate.mean == pytest.approx(-0.8)
    assert estimate.ci_high < 0


def test_paired_difference_of_different_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="one value a prompt each, got 2 and 3"):
        bootstrap_paired_difference([0.0, 1.0], [0.0, 1.0, 1.0])


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


def test_rank_correlation_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="one value a point each, got 2 and 3"):
        spearman([0.0, 1.0], [0.0, 1.0, 2.0])


def test_means_that_differ_by_less_than_a_prompt_in_a_hundred_share_a_rank() -> None:
    # ranks 1 2 3 4 and 1.5 1.5 3.5 3.5: covariance 4, squared deviations 5 and 4
    known, means = [0.0, 0.1, 0.2, 0.3], [0.00185, 0.00184, 0.99744, 0.99740]
    assert spearman_of_means(known, means) == pytest.approx(4 / (5 * 4) ** 0.5)


def test_means_a_prompt_apart_are_two_ranks() -> None:
    assert spearman_of_means([1.0, 2.0, 3.0], [0.00, 0.01, 0.02]) == pytest.approx(1.0)


def test_what_means_are_ranked_against_is_not_rounded() -> None:
    assert spearman_of_means([0.001, 0.002, 0.003], [0.1, 0.2, 0.3]) == pytest.approx(1.0)


def test_means_that_are_equal_as_printed_have_no_rank_correlation() -> None:
    assert spearman_of_means([0.0, 0.5, 1.0], [0.0018, 0.0019, 0.0017]) is None


def test_a_mean_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="nan in row 1"):
        spearman_of_means([0.0, 0.5, 1.0], [0.0, float("nan"), 1.0])
