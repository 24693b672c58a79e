import math

import numpy as np
import pytest
from scipy.stats import t

from rpa_ray.evaluation.comparisons import holm, over_seeds, paired_difference
from rpa_ray.evaluation.statistics import mean_estimate


def test_two_models_that_never_fail_may_still_differ() -> None:
    found = paired_difference([0.0] * 100, [0.0] * 100)
    assert (found.mean, found.p_value, found.n, found.num_items) == (0.0, 1.0, 100, 100)
    # 0 of 100 in either direction: 1 - 0.025^(1/100).
    assert (found.ci_low, found.ci_high) == pytest.approx((-0.0362, 0.0362), abs=1e-4)


def test_equal_scores_in_the_middle_of_the_scale_have_a_width_too() -> None:
    scores = np.random.default_rng(0).random(50)
    found = paired_difference(scores, scores)
    assert found.ci_low < -0.05 and found.ci_high > 0.05


def test_interval_of_a_certain_difference_ends_at_the_scale() -> None:
    found = paired_difference([1.0] * 100, [0.0] * 100)
    assert (found.mean, found.ci_high) == (1.0, 1.0)
    assert 0.93 < found.ci_low < 0.97
    # Student's interval alone ends at 1.07.
    assert paired_difference([1.0] * 9 + [0.4], [0.0] * 10).ci_high == 1.0


def test_interval_of_differences_to_both_sides_is_no_narrower_than_students() -> None:
    first, second = np.array([1.0, 0.0] * 24), np.array([0.0, 1.0] * 24)
    found = paired_difference(first, second)
    half = t.ppf(0.975, 47) * (first - second).std(ddof=1) / 48**0.5
    assert (found.ci_low, found.ci_high) == pytest.approx((-half, half), abs=0.03)


def test_paired_difference_removes_what_the_prompts_have_in_common() -> None:
    # Prompts differ by up to 1, the runs by 0.1 and a little.
    rng = np.random.default_rng(1)
    second = rng.uniform(0.0, 0.8, size=100)
    first = second + rng.uniform(0.05, 0.15, size=100)
    found = paired_difference(first, second)
    alone = mean_estimate(second)
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert 0.05 < found.ci_low < found.ci_high < 0.16
    assert found.ci_high - found.ci_low < 0.5 * (alone.ci_high - alone.ci_low)
    assert found.p_value == pytest.approx(1 / 10_001)


def test_difference_changes_sign_with_the_order() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random(40) ** 2, rng.random(40)
    one, two = paired_difference(first, second), paired_difference(second, first)
    assert one.mean == -two.mean < 0
    assert (one.ci_low, one.ci_high) == pytest.approx((-two.ci_high, -two.ci_low), abs=0.02)


def test_sign_flips_of_few_items_are_all_tried() -> None:
    # All five differ one way: 2 of the 32 flips reach that.
    assert paired_difference([1.0] * 5, [0.0] * 5).p_value == 2 / 32
    # 3 - 1: of 16 flips of (1, 1, 1, -1) all but the 6 that sum to 0 are as far from 0.
    assert paired_difference([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]).p_value == 10 / 16
    # What does not differ does not count.
    assert paired_difference([1.0] * 5 + [0.5] * 90, [0.0] * 5 + [0.5] * 90).p_value == 2 / 32


def test_sign_flips_are_of_items_and_not_of_prompts() -> None:
    items = [place // 10 for place in range(50)]
    found = paired_difference([1.0] * 50, [0.0] * 50, items=items)
    assert found.p_value == 2 / 32
    assert (found.n, found.num_items) == (50, 5)
    assert math.isnan(found.smallest_detectable)


def test_items_widen_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(3)
    second = np.full(360, 0.5)
    first = second + np.repeat(rng.uniform(-0.4, 0.4, size=40), 9)
    items = [place // 9 for place in range(360)]
    found = [paired_difference(first, second, items=known) for known in (items, None)]
    widths = [difference.ci_high - difference.ci_low for difference in found]
    assert widths[0] > 2.5 * widths[1]
    assert found[0].smallest_detectable == pytest.approx(3 * found[1].smallest_detectable, rel=0.05)


@pytest.mark.parametrize("num_items", [10, 48])
def test_equal_methods_are_told_apart_one_time_in_twenty(num_items: int) -> None:
    rng = np.random.default_rng(4)
    items = [place // 9 for place in range(9 * num_items)]
    found = []
    for _ in range(400):
        propensities = np.repeat(rng.beta(0.5, 0.5, size=(2, num_items)), 9, axis=1)
        first, second = rng.binomial(4, propensities) / 4
        found.append(paired_difference(first, second, items=items, num_resamples=300))
    # 0.05 plus two standard errors of 400 simulations; prompts taken for items give 0.5.
    assert 0.02 <= np.mean([difference.p_value <= 0.05 for difference in found]) <= 0.072
    assert np.mean([difference.ci_low <= 0 <= difference.ci_high for difference in found]) >= 0.93


def test_interval_of_a_rare_difference_covers() -> None:
    # One in a hundred fails under the second model, on few items, and none under the first.
    rng = np.random.default_rng(5)
    items = np.repeat(np.arange(48), 9)
    num_covered = 0
    for _ in range(400):
        second = rng.binomial(4, rng.beta(0.01, 0.99, size=48)[items]) / 4
        found = paired_difference(np.zeros(432), second, items=items.tolist(), num_resamples=300)
        num_covered += found.ci_low <= -0.01 <= found.ci_high
    assert num_covered / 400 >= 0.93


def test_a_difference_of_the_smallest_detectable_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(6)
    # Standard deviation 0.1 of 50 items: 2.80 * 0.1 / sqrt(50) = 0.0396.
    noise = rng.normal(0.0, 0.1, size=(400, 50))
    smallest = [
        paired_difference(row, np.zeros(50), bounded=False, num_resamples=300).smallest_detectable
        for row in noise[:50]
    ]
    assert np.mean(smallest) == pytest.approx(0.0396, rel=0.03)
    found = [
        paired_difference(row + 0.0396, np.zeros(50), bounded=False, num_resamples=300).p_value
        for row in noise
    ]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.8, abs=0.05)


def test_where_nothing_differs_six_items_have_to_be_seen() -> None:
    found = paired_difference([0.0] * 100, [0.0] * 100)
    seen = np.random.default_rng(7).binomial(100, found.smallest_detectable, size=20_000) >= 6
    assert seen.mean() == pytest.approx(0.8, abs=0.01)
    few = paired_difference([1.0, 5.0, 2.0], [0.0] * 3, bounded=False)
    assert math.isnan(few.smallest_detectable)
    assert math.isnan(paired_difference([2.0] * 9, [2.0] * 9, bounded=False).smallest_detectable)


def test_prompts_about_one_item_have_a_difference_without_an_interval() -> None:
    found = paired_difference([0.5, 0.7], [0.1, 0.2], items=["a", "a"])
    assert found.mean == pytest.approx(0.45)
    assert math.isnan(found.ci_low) and math.isnan(found.ci_high)
    assert found.p_value == 1.0


def test_paired_difference_of_different_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="one value a prompt each, got 2 and 3"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="must hold at least one number"):
        paired_difference([], [])
    with pytest.raises(ValueError, match=r"second must lie in \[0, 1\], got 3.0 in row 0"):
        paired_difference([0.0], [3.0])


def test_interval_over_seeds_is_students() -> None:
    means = [0.2, 0.3, 0.25, 0.4]
    low, high = t.interval(0.95, 3, np.mean(means), np.std(means, ddof=1) / 2)
    assert over_seeds(means) == pytest.approx((low, high))
    found = over_seeds(means, level=0.5)
    assert found is not None and found.low > low


def test_spread_over_seeds_and_over_items_add_up() -> None:
    means = [0.2, 0.3, 0.25]
    half = t.ppf(0.975, 2) * 0.05 / 3**0.5
    found = over_seeds(means, (0.15, 0.45))
    assert found == pytest.approx((0.25 - math.hypot(half, 0.1), 0.25 + math.hypot(half, 0.2)))
    assert over_seeds([0.0, 0.0, 0.0], (0.0, 0.036)) == pytest.approx((0.0, 0.036))
    assert over_seeds(means, (0.0, 0.9), bounds=(0.0, 1.0)) == pytest.approx(
        (0.0, 0.25 + math.hypot(half, 0.65))
    )


@pytest.mark.parametrize(
    ("means", "within"),
    [([0.2, 0.3], (0.1, 0.4)), ([], None), ([0.2] * 3, None), ([0.2] * 3, (math.nan, math.nan))],
)
def test_no_interval_over_too_few_seeds_or_without_a_spread(
    means: list[float], within: tuple[float, float] | None
) -> None:
    assert over_seeds(means, within) is None


def test_an_interval_of_other_means_is_refused() -> None:
    with pytest.raises(ValueError, match="within must hold the mean over seeds"):
        over_seeds([0.2, 0.3, 0.25], (0.3, 0.4))


def test_interval_over_seeds_covers_new_seeds_and_new_items() -> None:
    rng = np.random.default_rng(8)
    num_covered = {"both": 0, "seeds alone": 0}
    for _ in range(500):
        # Items and seeds that move the mean by as much.
        of_items, of_seeds = rng.normal(0.5, 0.2, size=40), rng.normal(0.0, 0.07, size=5)
        seed_means = of_items.mean() + of_seeds
        values = of_items + of_seeds.mean()
        within = mean_estimate(values, bounded=False, num_resamples=200)
        for kind, known in (("both", (within.ci_low, within.ci_high)), ("seeds alone", None)):
            found = over_seeds(seed_means, known)
            assert found is not None
            num_covered[kind] += found.low <= 0.5 <= found.high
    assert num_covered["both"] / 500 >= 0.93
    assert num_covered["seeds alone"] / 500 < 0.93


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize("p_value", [-0.1, 1.1])
def test_what_is_no_p_value_is_refused(p_value: float) -> None:
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        holm([0.5, p_value])
