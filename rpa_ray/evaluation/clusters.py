"""Values summed by the item they are about, and what resampling and spread over items say."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Items drawn at a time: what is drawn and looked up stays in the cache of a core.
_DRAWS_PER_CHUNK = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemTotals:
    """What the mean over values needs of each item; the items are drawn, not the values."""

    place: NDArray[np.intp]
    """Shape (values,): the item of each value, 0 to items - 1 in the order of first mention."""
    sums: NDArray[np.float64]
    """Shape (items,): sum of the values of each item."""
    counts: NDArray[np.float64]
    """Shape (items,): number of values of each item, at least 1."""

    @property
    def mean(self) -> float:
        """Mean over values: large items weigh more."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.sums.size

    @property
    def num_effective_items(self) -> float:
        """Number of items of equal size that would weigh as evenly, 1 to ``num_items``.

        Source: Kish 1965.
        """
        return float(self.counts.sum() ** 2 / (self.counts**2).sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """Shape (items,): weight of each item in the mean; they sum to 1."""
        shares: NDArray[np.float64] = self.counts / self.counts.sum()
        return shares

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over items; NaN with a single one.

        Source: Cochran 1977, ratio estimator, linearised.
        """
        if self.num_items < 2:
            return float("nan")
        residuals = self.shares * (self.sums / self.counts - self.mean)
        factor = self.num_items / (self.num_items - 1)
        return float(np.sqrt(factor * (residuals**2).sum()))


def item_totals(
    values: NDArray[np.float64], items: Sequence[Hashable] | None, *, name: str = "items"
) -> ItemTotals:
    """Return the sums by item.

    Args:
        values: Shape (values,), finite, at least one.
        items: The item of each value; None: every value is an item of its own.
        name: What the error calls ``items``.

    Raises:
        ValueError: If there is not one item a value.
    """
    if items is None:
        return ItemTotals(place=np.arange(values.size), sums=values, counts=np.ones(values.size))
    if len(items) != values.size:
        raise ValueError(
            f"{name} must have one item a value, got {len(items)} for {values.size} values. "
            "Name the item of every value, in the order of the values."
        )
    codes: dict[Hashable, int] = {}
    place = np.array([codes.setdefault(item, len(codes)) for item in items], dtype=np.intp)
    return ItemTotals(
        place=place,
        sums=np.bincount(place, weights=values).astype(np.float64),
        counts=np.bincount(place).astype(np.float64),
    )


def drawn_items(
    num_items: int, num_resamples: int, rng: np.random.Generator, *, width: int | None = None
) -> Iterator[tuple[slice, NDArray[np.intp]]]:
    """Yield rows of resamples and the items drawn for them, shape (rows, num_items).

    Args:
        num_items: Draws with replacement a resample.
        num_resamples: Rows of all chunks together.
        rng: Moved on by what is drawn.
        width: Numbers that the caller holds for a row, where more than ``num_items``.
    """
    rows = max(1, _DRAWS_PER_CHUNK // max(num_items, width or 0))
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        yield slice(start, stop), rng.integers(num_items, size=(stop - start, num_items))


def resampled_means(
    totals: ItemTotals, num_resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard error of each resample of whole items, shape (num_resamples,).

    A resample of one item over and over has the standard error 0.
    """
    off, squares = np.empty(num_resamples), np.empty(num_resamples)
    num, counts = totals.num_items, totals.counts
    residuals = totals.sums - totals.mean * counts
    is_even = bool(np.ptp(counts) == 0)
    for rows, draws in drawn_items(num, num_resamples, rng):
        drawn = residuals.take(draws)
        sizes = counts[:1, None] if is_even else counts.take(draws)
        # Of uneven items the number of values of a resample differs, so that sums would not do.
        num_values = num * sizes[:, 0] if is_even else sizes.sum(axis=1)
        off[rows] = drawn.sum(axis=1) / num_values
        drawn -= off[rows, None] * sizes
        squares[rows] = np.einsum("ij,ij->i", drawn, drawn) / num_values**2
    # Residuals are rounded: of zeros alone the mean would lie a little below 0.
    of_items = totals.sums / counts
    means = np.clip(totals.mean + off, of_items.min(), of_items.max())
    return means, np.sqrt(squares * num / (num - 1))


def studentised_ends(
    totals: ItemTotals,
    means: NDArray[np.float64],
    errors: NDArray[np.float64],
    level: float,
) -> tuple[float, float]:
    """Return the interval by how many standard errors resampled means lie off; it knows skew.

    Source: Efron 1981, bootstrap-t.
    """
    has_spread = errors > 1e-9 * totals.standard_error
    if not has_spread.any():
        return totals.mean, totals.mean
    low, high = outer_quantiles((means - totals.mean)[has_spread] / errors[has_spread], level)
    return totals.mean - high * totals.standard_error, totals.mean - low * totals.standard_error


def outer_quantiles(resampled: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the ends between which the share ``level`` of the resampled numbers lies."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_half_width(standard_error: float, num_independent: int, level: float) -> float:
    """Return how far the t interval reaches to each side, with one degree of freedom lost."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, num_independent - 1) * standard_error)
