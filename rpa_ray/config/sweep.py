"""A sweep: which settings vary over which values, and the points at which trials are run."""

import itertools
import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any, Literal

from rpa_ray.config.base import Settings
from rpa_ray.config.errors import ConfigError

Point = dict[str, Any]
"""One value of each swept key."""
NUM_RANDOM = 10
"""Trials of a search by Optuna whose points are random, before there is anything to learn from."""
_NUM_DIGITS = 6
"""Of a drawn number: its last ones differ between machines."""


class Distribution(Settings):
    """Numbers between two ends: they themselves are uniform, or their logarithms are."""

    scale: Literal["uniform", "log"]
    low: float
    high: float

    def at(self, share: float) -> float:
        """Return the number below which lies a share, 0 to 1, of the distribution."""
        low, high = self.low, self.high
        if self.scale == "log":
            return self.rounded(math.exp((1 - share) * math.log(low) + share * math.log(high)))
        return self.rounded((1 - share) * low + share * high)

    def rounded(self, number: float) -> float:
        """Return a number between the ends with as many digits as those of a point have."""
        return min(max(float(f"{number:.{_NUM_DIGITS}g}"), self.low), self.high)


class SweepSettings(Settings):
    """What varies in a sweep, how its points are found, and what tells the best of its trials."""

    grid: dict[str, list[Any] | Distribution]
    """Values by dotted key, in the order of the file: those of the first key vary slowest in a
    grid; a search takes any of a list, or of a distribution."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """``grid``: every combination. ``random``: points drawn from the seed. ``optuna``: as many
    random ones as ``NUM_RANDOM``, then those that a TPE expects most of (arXiv:2304.11127)."""
    num_trials: int | None = None
    """Of a search; a grid has as many as combinations."""
    seed: int = 0
    """Of the points of a search."""
    scheduler: Literal["asha", "median"] | None = None
    """What stops trials by their harm at the looks. ``asha``: after looks 1, 2, 4, 8, ... a trial
    that is not in the better half of those that came as far (arXiv:1810.05934). ``median``: one
    whose best look is worse than the median of the others' running means."""
    metric: str = "harm"
    """Name of a metric of the results table; where no trial has it, the judge's in place of it."""
    mode: Literal["max", "min"] = "max"
    """Whether the best trial has the largest metric, as an attacker wants it, or the least:
    that is meant where the file says neither and varies a defence."""

    def points(self) -> list[Point]:
        """Return the points that are known before the first trial.

        These are every combination of a grid, all of a random search in the order in which they are
        drawn (more trials begin with the same), and the random ones of Optuna.
        """
        if self.num_trials is None:
            lists = [self.options(key) for key in self.grid]
            combinations = itertools.product(*lists)
            return [dict(zip(self.grid, values, strict=True)) for values in combinations]
        num = self.num_trials if self.search == "random" else min(self.num_trials, NUM_RANDOM)
        return list(itertools.islice(self.draws(), num))

    def draws(self) -> Iterator[Point]:
        """Yield random points, no two alike; they end where every combination of lists was drawn.

        They follow from the seed alone.
        """
        random, drawn = Random(self.seed), set[str]()  # noqa: S311 - no secret
        num_points = self.num_points
        while num_points is None or len(drawn) < num_points:
            point = {key: self._at(key, random.random()) for key in self.grid}
            if (text := key_of(point)) not in drawn:
                drawn.add(text)
                yield point

    @property
    def num_points(self) -> int | None:
        """Return how many points there are; None where a key has a distribution."""
        if any(isinstance(values, Distribution) for values in self.grid.values()):
            return None
        return math.prod(len(self.options(key)) for key in self.grid)

    def options(self, key: str) -> list[Any]:
        """Return the values of a key that are listed; of a distribution its two ends."""
        values = self.grid[key]
        return [values.low, values.high] if isinstance(values, Distribution) else values

    def named(self, error: ConfigError) -> ConfigError:
        """Return an error of one trial, with ``sweep.`` before its key where that is swept."""
        if not any(is_at_or_below(error.key, key) for key in self.grid):
            return error
        return ConfigError(f"sweep.{error.key}", error.rule, error.value, error.remedy)

    def _at(self, key: str, share: float) -> Any:
        values = self.grid[key]
        if isinstance(values, Distribution):
            return values.at(share)
        return values[int(share * len(values))]


def key_of(point: Point) -> str:
    """Return a text that two points share only if they are the same."""
    return json.dumps(point, sort_keys=True)


def is_at_or_below(key: str, other: str) -> bool:
    """Return whether a dotted key is ``other`` or stands in that group."""
    return f"{key}.".startswith(f"{other}.")
