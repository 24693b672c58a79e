"""One number of a row: a metric over the seeds of a cell, with what is known of its spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rpa_ray.evaluation.comparisons import over_seeds
from rpa_ray.report.read.definitions import is_share
from rpa_ray.report.read.records import Estimate

SEEDS_FOR_INTERVAL = 5
"""From so many seeds on there is an interval over seeds; the values of fewer are told as a range
beside that over items, because their spread is hardly known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellValue:
    """One metric of one cell: the mean over its completed seeds."""

    mean: float
    """Of a censored one the least that it can be."""
    low: float
    """Of the interval over items within these seeds, of many seeds of that over seeds and items;
    NaN when unknown."""
    high: float
    by_seed: tuple[Estimate, ...]
    is_over_seeds: bool = False
    """Whether the ends are those of the interval over seeds and items."""
    is_censored: bool = False
    """Whether some seed was not followed for long enough to see the number: it is larger."""

    @property
    def is_over_items(self) -> bool:
        """Whether the ends are those of the interval over items within these seeds."""
        return not self.is_over_seeds and math.isfinite(self.low)

    @property
    def seed_range(self) -> tuple[float, float] | None:
        """The least and the largest of a few seeds; None of one, of many, and where censored."""
        if len(self.by_seed) < 2 or self.is_over_seeds or self.is_censored:
            return None
        means = [seed.mean for seed in self.by_seed]
        return min(means), max(means)

    @property
    def num_text(self) -> str:
        """How many answers a seed's number rests on, as `100`, or `90 to 100`."""
        counts = sorted({seed.n for seed in self.by_seed})
        return " to ".join(f"{count:,}" for count in dict.fromkeys(counts[:1] + counts[-1:]))


def value_over_seeds(name: str, seeds: Sequence[Estimate]) -> CellValue:
    """Return what the seeds of a cell say together.

    The interval over items within these seeds is the mean of their own ends: as wide as if they all
    erred alike. From five seeds on Student's over seeds is joined with it.

    Args:
        name: Of the metric: the interval of a share ends at 0 and 1.
        seeds: One estimate a completed seed, at least one.
    """
    is_censored = any(seed.is_censored for seed in seeds)
    means = [seed.ci_low if seed.is_censored else seed.mean for seed in seeds]
    mean = sum(means) / len(means)
    low, high = (
        sum(getattr(seed, end) for seed in seeds) / len(seeds) for end in ("ci_low", "ci_high")
    )
    is_over_seeds = False
    if is_censored:
        low, high = mean, math.nan
    elif len(seeds) >= SEEDS_FOR_INTERVAL and math.isfinite(low + high):
        within = min(mean, low), max(mean, high)
        interval = over_seeds(means, within, bounds=(0.0, 1.0) if is_share(name) else None)
        if interval is not None:
            (low, high), is_over_seeds = interval, True
    return CellValue(
        mean=mean,
        low=low,
        high=high,
        by_seed=tuple(seeds),
        is_over_seeds=is_over_seeds,
        is_censored=is_censored,
    )
