"""From a campaign's or a sweep's file to one tree a cell: lists, grids, seeds, swept values."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpa_ray.config import ExperimentSettings, Point
from rpa_ray.config.errors import ConfigError
from rpa_ray.plan.files import Tree, merge
from rpa_ray.plan.grid import departures_at, refuse_too_many


@dataclass(frozen=True, kw_only=True, slots=True)
class CellTree:
    """A cell as plain data, with what it alone changes."""

    where: str
    """Prefix of the keys in errors: ``cells[i].``, ``grid[i,j].``, or nothing in a run or sweep."""
    departures: Mapping[str, Any]
    tree: Tree


def departures_of(cells: Any, grid: Any) -> dict[str, Any]:
    """Return what each cell changes, by its place: those of ``cells``, then the grid's products."""
    found: dict[str, Any] = {}
    if cells is not None or grid is None:
        if not isinstance(cells, list) or not cells:
            remedy = "Write `cells: [{}]` for one cell."
            raise ConfigError("cells", "be a list with at least one cell", cells, remedy)
        found |= {f"cells[{i}]": cell for i, cell in enumerate(cells)}
    if grid is not None:
        if not isinstance(grid, list) or not all(isinstance(a, list) and a for a in grid):
            raise ConfigError(
                "grid",
                "be a list of axes, each a list of departures",
                grid,
                "Write `grid: [[{attack: sft}, {attack: dpo}], [{seed: 0}, {seed: 1}]]`.",
            )
        refuse_too_many("grid", math.prod(map(len, grid)))
        for place in itertools.product(*(range(len(axis)) for axis in grid)):
            where = f"grid[{','.join(map(str, place))}]"
            departures: Any = {}
            for axis, i in zip(grid, place, strict=True):
                part = axis[i]
                departures = merge(departures, part) if isinstance(part, Mapping) else part
                if not isinstance(part, Mapping):
                    break
            found[where] = departures
    return found


def expanded(tree: Tree, departures: Mapping[str, Any], seeds: Any) -> list[CellTree]:
    """Return one cell for each of the departures, or one for each of the seeds too.

    Raises:
        ConfigError: a cell is no mapping, seeds are no list, or there are too many.
    """
    if seeds is not None and (not isinstance(seeds, list) or not seeds):
        raise ConfigError(
            "seeds", "be a list with at least one seed", seeds, "Write `seeds: [0, 1]`."
        )
    refuse_too_many("cells", len(departures) * len(seeds or [0]))
    found: list[CellTree] = []
    for where, cell in departures.items():
        if not isinstance(cell, Mapping):
            raise ConfigError(where, "be a mapping of departures", cell, "Write `{defence: none}`.")
        if seeds is not None and "seed" in cell:
            raise ConfigError(
                f"{where}.seed", "be left out where seeds are given", cell["seed"], "Remove one."
            )
        merged = merge(tree, cell)
        for seed in seeds if seeds is not None else [merged.get("seed", 0)]:
            own = cell if seeds is None else {**cell, "seed": seed}
            seeded = {**merged, "seed": seed}
            found.append(CellTree(where=f"{where}.", departures=own, tree=seeded))
    return found


def trials(tree: Tree, points: Sequence[Point]) -> list[CellTree]:
    """Return one cell a point of a sweep; swept keys are no departures: none is overridden."""
    return [
        CellTree(where="", departures={}, tree=merge(tree, departures_at(point)))
        for point in points
    ]


def refuse_several_clusters(settings: Sequence[ExperimentSettings], wheres: list[str]) -> None:
    """Refuse a cell that wants another cluster than the first.

    Raises:
        ConfigError: there is one.
    """
    for cell, where in zip(settings, wheres, strict=True):
        if cell.cluster != settings[0].cluster:
            raise ConfigError(
                f"{where}cluster",
                "be that of every cell of the campaign",
                cell.cluster.model_dump(mode="json", exclude_defaults=True),
                "Set `cluster` beside `cells`, or write two campaigns.",
            )


def refuse_twins(settings: Sequence[ExperimentSettings], wheres: list[str]) -> None:
    """Refuse a cell that is there twice.

    Raises:
        ConfigError: there is one.
    """
    first_of: dict[str, int] = {}
    for i, (cell, where) in enumerate(zip(settings, wheres, strict=True)):
        twin = first_of.setdefault(cell.model_dump_json(), i)
        if twin < i:
            raise ConfigError(
                where.removesuffix("."),
                "differ from every other cell",
                f"the settings and the seed of {wheres[twin].removesuffix('.')}",
                "Remove one of the two.",
            )
