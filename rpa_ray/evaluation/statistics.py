"""Means with bootstrap intervals, deterministic by seed, and rank correlation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESOLUTION_DECIMALS = 2
"""Of means over prompts where they are ranked: one of 100 prompts, and what tables print."""

# Rows drawn at a time: 8 MB of indices a million, whatever the number of resamples.
_DRAWS_PER_CHUNK = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over n values and its percentile bootstrap interval."""

    mean: float
    n: int
    ci_low: float
    ci_high: float


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.float64],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return the mean and the interval between the outer percentiles of resampled means.

    Args:
        values: One value a prompt (or a seed).
        num_resamples: Draws with replacement of ``len(values)`` values.
        seed: Same values and seed give the same interval.
        level: Share of resampled means inside the interval, in (0, 1).

    Raises:
        ValueError: If there are no values or some are not finite.

    Source: Efron 1979, percentile method.
    """
    finite = require_finite(values, name="values")
    if finite.size == 0:
        raise ValueError(
            "values must hold at least one number, got none. Check what was evaluated."
        )
    means = _resampled_means(finite, num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(
        mean=float(finite.mean()), n=finite.size, ci_low=float(low), ci_high=float(high)
    )


def bootstrap_paired_difference(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of ``first - second`` and its interval, both measured on the same prompts.

    Raises:
        ValueError: If the lengths differ, there are no values, or some are not finite.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first and second must have one value a prompt each, got {len(first)} and "
            f"{len(second)}. Compare runs on the same prompts."
        )
    differences = require_finite(first, name="first") - require_finite(second, name="second")
    return bootstrap_mean(differences, num_resamples=num_resamples, seed=seed, level=level)


def bootstrap_median(values: Sequence[float], num_resamples: int) -> Estimate:
    """Return the median with the interval of resampled medians."""
    if not values:
        return Estimate(mean=float("nan"), n=0, ci_low=float("nan"), ci_high=float("nan"))
    array = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(array), size=(num_resamples, len(array)))
    medians = np.median(array[draws], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Estimate(
        mean=float(np.median(array)), n=len(array), ci_low=float(low), ci_high=float(high)
    )


def spearman(
    first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]
) -> float | None:
    """Return the correlation of the ranks, -1 to 1; equal values share the mean of their ranks.

    None with fewer than three points, or where all values of one side are equal: nothing to rank.

    Raises:
        ValueError: If the lengths differ or some values are not finite.

    Source: Spearman 1904, as Pearson's correlation of ranks, which is exact with ties.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first and second must have one value a point each, got {len(first)} and "
            f"{len(second)}. Pair every value with one of the other side."
        )
    ranks = [
        _average_ranks(require_finite(values, name=name))
        for values, name in ((first, "first"), (second, "second"))
    ]
    if len(first) < 3 or any(np.ptp(side) == 0 for side in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def spearman_of_means(known: Sequence[float], means: Sequence[float]) -> float | None:
    """Return :func:`spearman` of known values with means over prompts, ranked as they are printed.

    A judge gives probabilities, so that two models whose answers are all refusals have means of
    0.00184 and 0.00185. The difference is the judge's, not the models': both means are 0.00 here
    and share a rank. Three or more means that are all equal then have no correlation, None.

    Args:
        known: What the means are ranked against, as it is.
        means: One mean a point, in [0, 1].

    Raises:
        ValueError: If the lengths differ or some values are not finite.
    """
    return spearman(known, [round(mean, RESOLUTION_DECIMALS) for mean in means])


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


def _average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks from 1; equal values have the mean of the ranks they fill."""
    _, place, num_equal = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(num_equal)
    ranks: NDArray[np.float64] = (last - (num_equal - 1) / 2)[place]
    return ranks


def _resampled_means(
    values: NDArray[np.float64], num_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    rows_per_chunk = max(1, _DRAWS_PER_CHUNK // values.size)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, rows_per_chunk):
        stop = min(start + rows_per_chunk, num_resamples)
        draws = rng.integers(values.size, size=(stop - start, values.size))
        means[start:stop] = values[draws].mean(axis=1)
    return means
