"""Two models on the same prompts, several of them at once, and models over seeds."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpa_ray.evaluation.clusters import (
    ItemTotals,
    item_totals,
    outer_quantiles,
    resampled_means,
    t_half_width,
)
from rpa_ray.evaluation.statistics import (
    NO_INTERVAL,
    Interval,
    require_finite,
    require_shares,
    share_interval,
    t_interval,
)

MIN_SEEDS = 3
"""Below, the spread over seeds is not known well enough for an interval."""
ALPHA, POWER = 0.05, 0.8
MIN_ITEMS_FOR_ALPHA = 6
"""All differing one way have p = 2 / 2**6 = 0.03; five have 0.06 and are never significant."""

_MAX_ITEMS_EXACT = 12
_FLIPS_PER_CHUNK = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A mean difference between two models on the same prompts."""

    mean: float
    """First minus second."""
    ci_low: float
    """NaN, as the other end, where all prompts are about one item."""
    ci_high: float
    p_value: float
    """Of the two-sided sign-flip test over items, in (0, 1]."""
    n: int
    """Prompts."""
    num_items: int
    smallest_detectable: float
    """Size of a true difference that so many items show with 80 % power; NaN: none of them."""


def paired_difference(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    items: Sequence[Hashable] | None = None,
    bounded: bool = True,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Return the mean of ``first - second`` on the same prompts, with interval, p and power.

    The interval holds that of resampled whole items and the t interval over items. Of scores in
    [0, 1] it also holds the interval of two shares at the number of items, those that differ one
    way and the other, so that it keeps a width where nothing differed: an unseen difference
    counts as large as those seen, as far as there are any, and as 1 where there are none.

    The test flips the sign of the difference of whole items: exactly for up to 12 items that
    differ, else ``num_resamples`` times with p = (1 + as extreme) / (1 + flips). Interval and
    test speak of new items and of the models at hand. With several seeds average every prompt
    over the seeds first; what other seeds would give is the matter of :func:`over_seeds`.

    ``smallest_detectable`` is (1.96 + 0.84) standard errors over items (normal approximation).
    Where fewer than six items differ, which is never significant, or all alike, that says nothing.
    Of scores in [0, 1] it is then the share of items that must differ for six to be seen with
    80 % power, times how far they do; else NaN, as with fewer than six items in all.

    Args:
        first: One finite score a prompt.
        second: Scores of the other model on the same prompts, in the same order.
        items: What each prompt is about; None: every prompt is an item of its own.
        bounded: Whether both lie in [0, 1] by nature.
        num_resamples: Draws of as many items as there are, with replacement; also sign flips.
        seed: Same scores and seed give the same interval and p.
        level: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If the lengths differ, there are no values, some are not finite or (bounded)
            outside [0, 1], or there is not one item a prompt.

    Source: Newcombe 1998 (squares of distances add up); Edgington 1969 (sign flips).
    """
    totals = item_totals(_differences(first, second, bounded=bounded), items)
    rng = np.random.default_rng(seed)
    ends = NO_INTERVAL
    if totals.num_items > 1:
        means, _ = resampled_means(totals, num_resamples, rng)
        ends = Interval(*outer_quantiles(means, level)).around(t_interval(totals, level))
    if totals.num_items > 1 and bounded:
        ends = ends.around(_interval_of_two_shares(totals, level))
        ends = Interval(max(ends.low, -1.0), min(ends.high, 1.0))
    return Difference(
        mean=totals.mean,
        ci_low=ends.low,
        ci_high=ends.high,
        p_value=_sign_flip_p(totals.sums, num_resamples, rng),
        n=totals.place.size,
        num_items=totals.num_items,
        smallest_detectable=_smallest_detectable(totals, bounded=bounded),
    )


def over_seeds(
    seed_means: Sequence[float] | NDArray[np.float64],
    within: tuple[float, float] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
) -> Interval | None:
    """Return the interval of the mean over seeds that were not run; None below three seeds.

    The t interval over seeds has one degree of freedom less than seeds. Seeds share their items,
    so that their spread does not show what other items would do: with ``within`` the squared
    distances of both intervals from the mean add up, and neither is wider than what is returned.

    Args:
        seed_means: One mean a seed (or one difference), finite.
        within: Interval of the mean over these seeds, from :func:`mean_estimate` or
            :func:`paired_difference` with every prompt averaged over seeds; None: the items are
            all there are, which near the ends of a scale covers less than it says.
        bounds: Ends of the scale, for means that have some: (0, 1), of differences (-1, 1).
        level: Coverage, in (0, 1).

    Returns:
        None also where ``within`` has no ends (a single item), and where all seeds agree to the
        last digit and there is no ``within``.

    Raises:
        ValueError: If some means are not finite, or their mean lies outside ``within``.

    Source: Student 1908; Newcombe 1998 (squares of distances add up).
    """
    means = require_finite(seed_means, name="seed_means")
    if means.size < MIN_SEEDS or (within is not None and np.isnan(within).any()):
        return None
    mean = float(means.mean())
    # Of equal means the standard deviation is a rounding error.
    spread = float(means.std(ddof=1)) if np.ptp(means) > 0 else 0.0
    half = t_half_width(spread / means.size**0.5, means.size, level)
    below = above = 0.0
    if within is not None:
        below, above = mean - within[0], within[1] - mean
        if min(below, above) < -1e-9:
            raise ValueError(
                f"within must hold the mean over seeds, got {within} and {mean}. Pass the "
                "interval of the prompts averaged over the same seeds."
            )
    if half == below == above == 0:
        return None
    low, high = mean - float(np.hypot(half, below)), mean + float(np.hypot(half, above))
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Interval(low, high)


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Return the p-values of a family of tests, adjusted to hold for all of them at once.

    Args:
        p_values: In [0, 1], one a test of the family; those that were not run are left out.

    Returns:
        Adjusted p-values in the order given, in [0, 1], none smaller than its own.

    Raises:
        ValueError: If some are not finite or outside [0, 1].

    Source: Holm 1979.
    """
    finite = require_finite(p_values, name="p_values")
    if ((finite < 0) | (finite > 1)).any():
        raise ValueError(
            f"p_values must lie in [0, 1], got {finite.min()} to {finite.max()}. "
            "Pass what a test returned."
        )
    if finite.size == 0:
        return []
    from statsmodels.stats.multitest import multipletests

    adjusted: list[float] = multipletests(finite, method="holm")[1].tolist()
    return adjusted


def _differences(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    bounded: bool,
) -> NDArray[np.float64]:
    if len(first) != len(second):
        raise ValueError(
            f"first and second must have one value a prompt each, got {len(first)} and "
            f"{len(second)}. Compare runs on the same prompts."
        )
    if len(first) == 0:
        raise ValueError(
            "first and second must hold at least one number, got none. Check what was evaluated."
        )
    sides = [require_finite(first, name="first"), require_finite(second, name="second")]
    if bounded:
        sides = [
            require_shares(side, name=name)
            for side, name in zip(sides, ("first", "second"), strict=True)
        ]
    return sides[0] - sides[1]


def _typical_size(sizes: NDArray[np.float64]) -> float:
    """Return how far an item differs that does, weighted by how far, beside one that differs by 1.

    Never below the mean size, so that the shares of items that differ sum to 1 at most.
    """
    return float(((sizes**2).sum() + 1) / (sizes.sum() + 1))


def _interval_of_two_shares(totals: ItemTotals, level: float) -> Interval:
    """Return the interval from the items that differ upwards and those that differ downwards."""
    differences, num = totals.sums / totals.counts, totals.num_effective_items
    size = _typical_size(np.abs(differences))
    ends = []
    for side in (differences, -differences):
        share = float((totals.shares * side.clip(0.0)).sum()) / size
        low, high = share_interval(min(share, 1.0) * num, num, level)
        ends.append((share - low, high - share))
    (up_below, up_above), (down_below, down_above) = ends
    return Interval(
        totals.mean - size * float(np.hypot(up_below, down_above)),
        totals.mean + size * float(np.hypot(up_above, down_below)),
    )


def _sign_flip_p(sums: NDArray[np.float64], num_flips: int, rng: np.random.Generator) -> float:
    """Return the share of sign flips whose sum is as far from 0 as the sum of the items."""
    differing = sums[sums != 0]
    if differing.size == 0:
        return 1.0
    # Sums of the same numbers in another order differ in the last digits.
    reached = abs(differing.sum()) - 1e-9 * np.abs(differing).sum()
    if differing.size <= _MAX_ITEMS_EXACT:
        flips = np.arange(2**differing.size)[:, None] >> np.arange(differing.size) & 1
        signs = 1.0 - 2.0 * flips
        return float((np.abs(signs @ differing) >= reached).mean())
    rows_per_chunk = max(1, _FLIPS_PER_CHUNK // differing.size)
    num_extreme = 0
    for start in range(0, num_flips, rows_per_chunk):
        rows = min(rows_per_chunk, num_flips - start)
        signs = 2.0 * rng.integers(2, size=(rows, differing.size), dtype=np.int8) - 1.0
        num_extreme += int((np.abs(signs @ differing) >= reached).sum())
    return (1 + num_extreme) / (1 + num_flips)


def _smallest_detectable(totals: ItemTotals, *, bounded: bool) -> float:
    if totals.num_items < MIN_ITEMS_FOR_ALPHA:
        return float("nan")
    from scipy.stats import beta, norm

    sizes = np.abs(totals.sums / totals.counts)
    # Differences that are all equal leave a rounding error for a spread.
    has_spread = totals.standard_error > 1e-9 * sizes.max()
    if has_spread and (np.count_nonzero(sizes) >= MIN_ITEMS_FOR_ALPHA or not bounded):
        return float(norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)) * totals.standard_error
    if not bounded:
        return float("nan")
    # P(six or more of the items differ) = POWER, as a quantile of the beta distribution.
    least = beta.ppf(POWER, MIN_ITEMS_FOR_ALPHA, totals.num_items - MIN_ITEMS_FOR_ALPHA + 1)
    return float(least) * _typical_size(sizes)
