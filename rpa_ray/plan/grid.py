"""Sweeps as files write them: the keys of a grid, its points as departures, what may not be set."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from rpa_ray.config import Point, SweepSettings
from rpa_ray.config.errors import ConfigError
from rpa_ray.config.sweep import is_at_or_below
from rpa_ray.plan.explain import explain
from rpa_ray.plan.files import Tree, merge, nested, parse_override

MAX_CELLS = 20_000
"""Of one file; twice as many as were tried."""
_EXAMPLE = "Write `sweep: {attack.kl_coef: [0.01, 0.1, 1]}`."


def parse_sweep(grid: Any, metric: Any, mode: Any) -> SweepSettings:
    """Return the settings of the keys ``sweep``, ``metric`` and ``mode`` of a file.

    Raises:
        ConfigError: one of them has another form, or a value is there twice.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ConfigError("sweep", "be a mapping of dotted keys to lists", grid, _EXAMPLE)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"sweep.{key}", "be a list with at least one value", values, _EXAMPLE)
    refuse_too_many("sweep", math.prod(map(len, grid.values())))
    for key, values in grid.items():
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ConfigError(
                    f"sweep.{key}", "hold each value once", values, f"Remove one {value!r}."
                )
    if mode is None and any(is_at_or_below(key, "defence") for key in grid):
        mode = "min"  # who varies a defence looks for the least harm
    given = {"metric": metric, "mode": mode}
    try:
        return SweepSettings.model_validate(
            {"grid": dict(grid)} | {key: value for key, value in given.items() if value is not None}
        )
    except ValidationError as error:
        raise explain(error, SweepSettings, "") from None


def refuse_too_many(key: str, num_cells: int) -> None:
    """Refuse what would take hours before anything is started.

    Raises:
        ConfigError: a file makes more than ``MAX_CELLS`` cells.
    """
    if num_cells > MAX_CELLS:
        rule = f"make at most {MAX_CELLS:,} cells"
        raise ConfigError(key, rule, num_cells, "Write several files, or fewer values.")


def departures_at(point: Point) -> Tree:
    """Return what a trial changes, as a tree; a whole group is laid before a key in it."""
    tree: Tree = {}
    for key in sorted(point, key=lambda key: key.count(".")):
        tree = merge(tree, nested(key.split("."), point[key]))
    return tree


def refuse_overridden(sweep: SweepSettings, overrides: Iterable[str]) -> None:
    """Refuse an override of a swept key: it would be without effect.

    Raises:
        ConfigError: there is one.
    """
    for override in overrides:
        key = ".".join(parse_override(override)[0])
        for swept in sweep.grid:
            if is_at_or_below(key, swept):
                raise ConfigError(
                    "--set",
                    f"name a key that is not swept (sweep.{swept} is {sweep.grid[swept]!r})",
                    override,
                    "Change the values in the file.",
                )
