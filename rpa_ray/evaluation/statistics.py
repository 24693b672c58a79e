"""Means, shares and medians with intervals that know the items and the ends of the scale."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rpa_ray.evaluation.clusters import (
    ItemTotals,
    drawn_items,
    item_totals,
    outer_quantiles,
    resampled_means,
    studentised_ends,
    t_half_width,
)

RESOLUTION_DECIMALS = 2
"""Of means over prompts where they are ranked: one of 100 prompts, and what tables print."""


# Of fewer, resamples are so often one item many times that the ends run away.
_MIN_ITEMS_STUDENTISED = 10


class Interval(NamedTuple):
    """Both ends of an interval; NaN where there is none."""

    low: float
    high: float

    def around(self, other: "Interval") -> "Interval":
        """Return the narrowest interval that holds both; one without ends adds nothing."""
        return Interval(float(np.fmin(self.low, other.low)), float(np.fmax(self.high, other.high)))


NO_INTERVAL = Interval(float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean (or median) over n values and its interval over the items they are about."""

    mean: float
    n: int
    ci_low: float
    """NaN where there is no interval: of a single item, or of no values."""
    ci_high: float
    num_items: int | None = None
    """Independent units behind the interval; None where they were not told apart."""


def share_interval(num_true: float, n: float, level: float = 0.95) -> Interval:
    """Return the exact interval of a share of independent items.

    Args:
        num_true: Items of which it is true, 0 to ``n``. A sum of scores between 0 and 1 need not
            be whole; the interval is then wider than theirs, because no scores of a given mean
            spread more than zeros and ones.
        n: Items, above 0. An effective number need not be whole either.
        level: Coverage, in (0, 1).

    Raises:
        ValueError: If ``n`` is not above 0 or ``num_true`` is not between 0 and ``n``.

    Source: Clopper and Pearson 1934.
    """
    if not (n > 0 and 0 <= num_true <= n):
        raise ValueError(
            f"num_true must lie between 0 and n, and n above 0, got {num_true} of {n}. "
            "Count the items of which it is true, and all items."
        )
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(num_true, n, alpha=1 - level, method="beta")
    return Interval(float(low), float(high))


def mean_estimate(
    values: Sequence[float] | NDArray[np.float64],
    *,
    items: Sequence[Hashable] | None = None,
    bounded: bool = True,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return the mean over values and its interval over items, within the seeds that were run.

    The interval holds that of resampled whole items and, so that few items or rare events do not
    make it too narrow, another: of scores in [0, 1] the exact interval of a share at the number
    of items (effective, where they differ in size), else the t interval over items and, from ten
    items on, the studentised one, which knows that perplexities and lengths are skewed. The items
    are new ones of the same kind; the models are those of these seeds. For a mean over
    seeds, average every prompt over the seeds first.

    Args:
        values: One finite value a prompt (or an answer).
        items: What each value is about: values of one item are not independent. None: every
            value is an item of its own.
        bounded: Whether the values lie in [0, 1] by nature (shares, probabilities); False for
            perplexities, divergences, lengths and rewards.
        num_resamples: Draws of as many items as there are, with replacement.
        seed: Same values and seed give the same interval.
        level: Coverage, in (0, 1).

    Returns:
        The mean with ``n`` values and ``num_items`` items; ends NaN with a single item.

    Raises:
        ValueError: If there are no values, some are not finite or (bounded) outside [0, 1], or
            there is not one item a value.

    Source: Efron 1979 (percentiles) and 1981 (bootstrap-t); Clopper and Pearson 1934.
    """
    finite = require_finite(values, name="values")
    if finite.size == 0:
        raise ValueError(
            "values must hold at least one number, got none. Check what was evaluated."
        )
    if bounded:
        finite = require_shares(finite, name="values")
    totals = item_totals(finite, items)
    ends = NO_INTERVAL
    if totals.num_items > 1:
        means, errors = resampled_means(totals, num_resamples, np.random.default_rng(seed))
        ends = Interval(*outer_quantiles(means, level)).around(
            _interval_of_share(totals, level) if bounded else t_interval(totals, level)
        )
        if not bounded and totals.num_items >= _MIN_ITEMS_STUDENTISED:
            ends = ends.around(Interval(*studentised_ends(totals, means, errors, level)))
    return Estimate(
        mean=totals.mean,
        n=finite.size,
        ci_low=ends.low,
        ci_high=ends.high,
        num_items=totals.num_items,
    )


def bootstrap_median(
    values: Sequence[float] | NDArray[np.float64],
    num_resamples: int,
    *,
    items: Sequence[Hashable] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return the median and its interval over items.

    It holds that of medians of resampled whole items, and the values between which the share of
    values below the median lies by the t interval over items.

    Args:
        values: Finite; none at all give NaN with ``n`` 0.
        num_resamples: Draws of as many items as there are, with replacement.
        items: What each value is about; None: every value is an item of its own.
        seed: Same values and seed give the same interval.
        level: Coverage, in (0, 1).

    Returns:
        The median, in ``mean``; ends NaN with a single item.

    Raises:
        ValueError: If some values are not finite or there is not one item a value.

    Source: Efron 1979 (percentile method); Woodruff 1952 (shares below).
    """
    finite = require_finite(values, name="values")
    if finite.size == 0:
        return Estimate(mean=float("nan"), n=0, ci_low=float("nan"), ci_high=float("nan"))
    totals = item_totals(finite, items)
    ends = NO_INTERVAL
    if totals.num_items > 1:
        medians = _resampled_medians(finite, totals, num_resamples, np.random.default_rng(seed))
        ends = Interval(*outer_quantiles(medians, level)).around(
            _interval_by_rank(finite, items, level)
        )
    return Estimate(
        mean=float(np.median(finite)),
        n=finite.size,
        ci_low=ends.low,
        ci_high=ends.high,
        num_items=totals.num_items,
    )


def require_finite(
    values: Sequence[float] | NDArray[np.float64], *, name: str
) -> NDArray[np.float64]:
    """Return the values as fp64.

    Raises:
        ValueError: If some are not finite, with the first row numbers.
    """
    array = np.asarray(values, dtype=np.float64)
    rows = np.flatnonzero(~np.isfinite(array))
    if rows.size:
        shown = ", ".join(f"{array[row]} in row {row}" for row in rows[:5])
        raise ValueError(
            f"{name} must be finite, got {shown} ({rows.size} of {array.size} rows). "
            "Count undefined values apart instead of averaging them."
        )
    return array


def require_shares(values: NDArray[np.float64], *, name: str) -> NDArray[np.float64]:
    """Return the values, rounding errors at the ends of [0, 1] taken off.

    Raises:
        ValueError: If some lie outside [0, 1], with the first row numbers.
    """
    rows = np.flatnonzero((values < -1e-6) | (values > 1 + 1e-6))
    if rows.size:
        shown = ", ".join(f"{values[row]} in row {row}" for row in rows[:5])
        raise ValueError(
            f"{name} must lie in [0, 1], got {shown} ({rows.size} of {values.size} rows). "
            "Pass bounded=False for values that are no shares or probabilities."
        )
    return values.clip(0.0, 1.0)


def _interval_of_share(totals: ItemTotals, level: float) -> Interval:
    num = totals.num_effective_items
    return share_interval(min(totals.mean, 1.0) * num, num, level)


def t_interval(totals: ItemTotals, level: float) -> Interval:
    """Return the t interval of the mean over two or more items."""
    half = t_half_width(totals.standard_error, totals.num_items, level)
    return Interval(totals.mean - half, totals.mean + half)


def _interval_by_rank(
    values: NDArray[np.float64], items: Sequence[Hashable] | None, level: float
) -> Interval:
    is_below = (values <= np.median(values)).astype(np.float64)
    below = item_totals(is_below, items)
    half = t_half_width(below.standard_error, below.num_items, level)
    low, high = np.quantile(values, [max(0.0, 0.5 - half), min(1.0, 0.5 + half)])
    return Interval(float(low), float(high))


def _resampled_medians(
    values: NDArray[np.float64], totals: ItemTotals, num_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    order = np.argsort(values)
    ascending, place = values[order], totals.place[order]
    medians = np.empty(num_resamples)
    num = totals.num_items
    for rows, draws in drawn_items(num, num_resamples, rng, width=values.size):
        shifted = draws + num * np.arange(len(draws))[:, None]
        times = np.bincount(shifted.ravel(), minlength=draws.size).reshape(draws.shape)
        filled = times[:, place].cumsum(axis=1)
        total = filled[:, -1:]
        # The middle value, or both where the number of values is even.
        lower = ascending[(2 * filled >= total).argmax(axis=1)]
        upper = ascending[(2 * filled > total).argmax(axis=1)]
        medians[rows] = (lower + upper) / 2
    return medians
