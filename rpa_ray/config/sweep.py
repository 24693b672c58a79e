"""A sweep: which settings vary over which values, and the points of their grid."""

import itertools
from typing import Any, Literal

from rpa_ray.config.errors import ConfigError
from rpa_ray.config.schema import Settings

Point = dict[str, Any]
"""One value of each swept key."""


class SweepSettings(Settings):
    """A grid of settings, and what tells the best of its trials."""

    grid: dict[str, list[Any]]
    """Values by dotted key, in the order of the file: those of the first key vary slowest."""
    metric: str = "harm"
    """Name of a metric of the results table; where no trial has it, the judge's in place of it."""
    mode: Literal["max", "min"] = "max"
    """Whether the best trial has the largest metric, as an attacker wants it, or the least:
    that is meant where the file says neither and varies a defence."""

    def points(self) -> list[Point]:
        """Return every combination of the values."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]

    def named(self, error: ConfigError) -> ConfigError:
        """Return an error of one trial, with ``sweep.`` before its key where that is swept."""
        if not any(is_at_or_below(error.key, key) for key in self.grid):
            return error
        return ConfigError(f"sweep.{error.key}", error.rule, error.value, error.remedy)


def is_at_or_below(key: str, other: str) -> bool:
    """Return whether a dotted key is ``other`` or stands in that group."""
    return f"{key}.".startswith(f"{other}.")
