import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, t

from rpa_ray.evaluation.clusters import item_totals, resampled_means
from rpa_ray.evaluation.statistics import (
    Estimate,
    Interval,
    bootstrap_median,
    mean_estimate,
    share_interval,
)


def width(estimate: Estimate) -> float:
    return estimate.ci_high - estimate.ci_low


def test_the_interval_of_rare_small_scores_does_not_reach_below_0() -> None:
    values = np.zeros(360)
    values[::120] = 0.1, 0.2, 0.3
    found = mean_estimate(values, items=[i // 10 for i in range(360)])
    assert str(found.ci_low) == "0.0"


def test_none_of_a_hundred_leaves_room_above_and_all_of_them_below() -> None:
    none, every = mean_estimate([0.0] * 100), mean_estimate([1.0] * 100)
    assert (none.mean, none.ci_low) == (0.0, 0.0)
    # 1 - 0.025^(1/100), above the rule of three's 3/100.
    assert none.ci_high == pytest.approx(0.0362, abs=1e-4)
    assert (every.ci_low, every.ci_high) == pytest.approx((1 - none.ci_high, 1.0))


def test_share_of_independent_items_has_the_exact_interval() -> None:
    # P(X >= 3) = 0.025 at the lower end and P(X <= 3) = 0.025 at the upper one, X of 10.
    low, high = share_interval(3, 10)
    assert (low, high) == pytest.approx((0.0667, 0.6525), abs=1e-4)
    assert share_interval(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert share_interval(3, 10, level=0.5).low > low


@pytest.mark.parametrize(("num_true", "n"), [(-1, 10), (11, 10), (0, 0), (math.nan, 10)])
def test_a_share_of_more_than_all_is_refused(num_true: float, n: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and n, and n above 0"):
        share_interval(num_true, n)


def test_a_judge_that_is_nearly_sure_of_every_answer_leaves_a_width() -> None:
    estimate = mean_estimate([0.997] * 100)
    assert estimate.mean == pytest.approx(0.997)
    assert estimate.ci_low == pytest.approx(beta.ppf(0.025, 99.7, 1.3))
    assert estimate.ci_high == pytest.approx(beta.ppf(0.975, 100.7, 0.3))


def test_interval_of_coin_flips_has_the_binomial_width() -> None:
    # The quantiles of Binomial(100, 0.5) / 100 are 0.40 and 0.60; the exact interval is a little
    # wider.
    estimate = mean_estimate([0.0, 1.0] * 50)
    assert (estimate.mean, estimate.n, estimate.num_items) == (0.5, 100, 100)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((0.398, 0.602), abs=0.003)


def test_lower_level_gives_a_narrower_interval() -> None:
    assert width(mean_estimate([0.0, 1.0] * 50, level=0.5)) == pytest.approx(0.078, abs=0.005)


def test_scores_of_one_item_count_as_one() -> None:
    # 10 items that always or never comply, 10 prompts each: the interval of 5 of 10, not 50 of 100.
    values, items = [1.0] * 50 + [0.0] * 50, [f"item {place // 10}" for place in range(100)]
    estimate = mean_estimate(values, items=items)
    assert (estimate.n, estimate.num_items) == (100, 10)
    # The resampled means, Binomial(10, 0.5) / 10, end at 0.2 and 0.8.
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(share_interval(5, 10))
    assert width(estimate) > 2.5 * width(mean_estimate(values))


def test_items_of_unbounded_values_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=30), 10)
    clustered = mean_estimate(values, items=np.repeat(np.arange(30), 10).tolist(), bounded=False)
    assert width(clustered) == pytest.approx(
        10**0.5 * width(mean_estimate(values, bounded=False)), rel=0.15
    )


def test_unequal_items_weigh_by_their_values_and_are_fewer_in_effect() -> None:
    # 40 values of one item and 10 items of one value: (50)^2 / (40^2 + 10) = 1.55 items.
    values, items = [1.0] * 40 + [0.0] * 10, ["large"] * 40 + list(range(10))
    estimate = mean_estimate(values, items=items)
    assert (estimate.mean, estimate.num_items) == (0.8, 11)
    effective = 50**2 / (40**2 + 10)
    low, high = share_interval(0.8 * effective, effective)
    # One resample in three has not drawn the large item: its mean is 0.
    assert estimate.ci_low == 0.0 < low
    assert estimate.ci_high >= high


def test_resampled_means_are_ratios_of_what_was_drawn() -> None:
    totals = item_totals(np.array([0.0] + [1.0] * 9), ["a"] + ["b"] * 9)
    means, errors = resampled_means(totals, 200, np.random.default_rng(0))
    assert set(means.round(9)) == {0.0, 0.9, 1.0}
    # Both drawn: residuals 0.1 * (0 - 0.9) and 0.9 * (1 - 0.9), times sqrt(2 / 1).
    assert errors[np.isclose(means, 0.9)] == pytest.approx(0.09 * 2)
    assert errors[~np.isclose(means, 0.9)] == pytest.approx(0.0)
    assert totals.standard_error == pytest.approx(0.09 * 2)


def test_interval_of_unbounded_values_is_no_narrower_than_students() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=8)
    estimate = mean_estimate(values, bounded=False)
    low, high = t.interval(0.95, 7, values.mean(), values.std(ddof=1) / 8**0.5)
    # 8 values are too few to resample: the percentiles lie inside.
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high))


def test_interval_of_skewed_values_reaches_further_up_than_students() -> None:
    values = np.exp(1.5 * np.random.default_rng(2).normal(size=30))
    estimate = mean_estimate(values, bounded=False)
    _, high = t.interval(0.95, 29, values.mean(), values.std(ddof=1) / 30**0.5)
    assert estimate.ci_high > high + 0.2 * (high - values.mean())


def test_a_single_value_or_item_has_no_interval() -> None:
    for estimate in (
        mean_estimate([0.25]),
        mean_estimate([0.25, 0.5], items=["a", "a"]),
        mean_estimate([3.0], bounded=False),
        bootstrap_median([3.0], 100),
        bootstrap_median([3.0, 4.0], 100, items=["a", "a"]),
    ):
        assert estimate.num_items == 1
        assert math.isnan(estimate.ci_low) and math.isnan(estimate.ci_high)


def test_interval_is_deterministic_by_seed() -> None:
    values = list(np.random.default_rng(0).normal(size=37))
    found = [mean_estimate(values, bounded=False, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]
    assert bootstrap_median(values, 100, seed=3) == bootstrap_median(values, 100, seed=3)


def test_bootstrap_of_many_values_is_drawn_in_chunks_and_keeps_its_width() -> None:
    # 30,000 values exceed one chunk for 100 resamples; standard error 1 / sqrt(30000) = 0.0058
    values = np.random.default_rng(0).normal(size=30_000)
    estimate = mean_estimate(values, bounded=False, num_resamples=100)
    assert width(estimate) == pytest.approx(2 * 1.96 * 0.0058, rel=0.3)


@pytest.mark.parametrize("bounded", [True, False])
def test_interval_covers_a_rare_event_of_clustered_prompts(bounded: bool) -> None:
    # Resampled items alone cover 6 of 10 times here: often no item shows the event at all. The
    # unbounded interval is what that looks like.
    rng = np.random.default_rng(5)
    covered = [covers_rare_event(rng, bounded) for _ in range(400)]
    assert (np.mean(covered) >= 0.93) == bounded


def covers_rare_event(rng: np.random.Generator, bounded: bool) -> bool:
    items = np.repeat(np.arange(48), 9)
    propensities = rng.beta(0.01, 0.99, size=48)
    values = rng.binomial(4, propensities[items]) / 4
    estimate = mean_estimate(values, items=items.tolist(), bounded=bounded, num_resamples=300)
    return estimate.ci_low <= 0.01 <= estimate.ci_high


def test_interval_covers_a_coin_flip_of_clustered_prompts() -> None:
    rng = np.random.default_rng(6)
    covered = {True: 0, False: 0}
    for _ in range(300):
        items = np.repeat(np.arange(36), 9)
        values = rng.binomial(1, rng.beta(0.5, 0.5, size=36)[items]).astype(float)
        for is_known in covered:
            known = items.tolist() if is_known else None
            estimate = mean_estimate(values, items=known, num_resamples=300)
            covered[is_known] += estimate.ci_low <= 0.5 <= estimate.ci_high
    assert covered[True] / 300 >= 0.93
    assert covered[False] / 300 < 0.8


def test_median_is_that_of_the_values_and_its_interval_covers() -> None:
    rng = np.random.default_rng(7)
    num_covered = 0
    for _ in range(300):
        items = np.repeat(np.arange(36), rng.integers(8, 11, size=36))
        values = np.exp(rng.normal(size=36)[items] + rng.normal(size=items.size))
        estimate = bootstrap_median(values, 200, items=items.tolist())
        assert estimate.mean == np.median(values)
        num_covered += estimate.ci_low <= 1.0 <= estimate.ci_high
    assert num_covered / 300 >= 0.93


def test_median_knows_its_items() -> None:
    values = np.repeat(np.random.default_rng(8).normal(size=40), 10)
    alone = bootstrap_median(values, 1000)
    clustered = bootstrap_median(values, 1000, items=np.repeat(np.arange(40), 10).tolist())
    assert width(clustered) > 2 * width(alone)
    assert (clustered.n, clustered.num_items) == (400, 40)


def test_median_of_an_even_number_lies_between_the_middle_values() -> None:
    estimate = bootstrap_median([1.0, 2.0, 4.0, 9.0], 1000)
    assert estimate.mean == 3.0
    assert (estimate.ci_low, estimate.ci_high) == (1.0, 9.0)
    # Resampled medians of two values are 0, 0.5 and 1; those in the middle are 0.5.
    narrow = bootstrap_median([0.0, 1.0], 2000, level=0.02)
    assert (narrow.ci_low, narrow.ci_high) == pytest.approx((0.5, 0.5), abs=0.02)


def test_median_of_no_values_is_undefined() -> None:
    estimate = bootstrap_median([], 100)
    assert math.isnan(estimate.mean) and estimate.n == 0


def test_values_that_are_not_finite_are_refused_with_their_rows() -> None:
    with pytest.raises(ValueError, match=r"nan in row 1, inf in row 3 \(2 of 4 rows\)"):
        mean_estimate([0.0, math.nan, 1.0, math.inf])


def test_scores_outside_the_scale_are_refused_with_their_rows() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5 in row 1"):
        mean_estimate([0.0, 1.5])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got -0.5 in row 0"):
        mean_estimate([-0.5, 1.0])
    assert mean_estimate([0.0, 1.0 + 1e-9]).ci_high <= 1.0


def test_mean_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="values must hold at least one number"):
        mean_estimate([])


def test_items_of_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="one item a value, got 1 for 2 values"):
        mean_estimate([0.0, 1.0], items=["a"])


def test_an_interval_around_another_holds_both() -> None:
    assert Interval(0.1, 0.3).around(Interval(0.2, 0.4)) == (0.1, 0.4)
    assert Interval(0.1, 0.3).around(Interval(math.nan, math.nan)) == (0.1, 0.3)


def test_order_of_the_values_does_not_matter_beyond_the_draws() -> None:
    values: NDArray[np.float64] = np.random.default_rng(9).random(60)
    items = [place % 7 for place in range(60)]
    order = np.random.default_rng(10).permutation(60)
    one = mean_estimate(values, items=items)
    two = mean_estimate(values[order], items=[items[place] for place in order])
    assert (one.mean, one.num_items) == (pytest.approx(two.mean), two.num_items)
    assert (one.ci_low, one.ci_high) == pytest.approx((two.ci_low, two.ci_high), abs=0.02)
