"""Sweeps as files write them: the keys of a grid, its points as departures, what may not be set."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from rpa_ray.config import ExperimentSettings, Point, SweepSettings
from rpa_ray.config.errors import ConfigError
from rpa_ray.config.sweep import Distribution, is_at_or_below
from rpa_ray.plan.explain import explain
from rpa_ray.plan.files import Tree, merge, nested, parse_override

MAX_CELLS = 20_000
"""Of one file; twice as many as were tried."""
SEARCH_KEYS = ("search", "num_trials", "scheduler")
"""Keys below ``sweep`` that say how; all others are swept."""
DISTRIBUTIONS = {
    "choice": "{choice: [1, 2, 3]}",
    "log": "{log: [1e-6, 1e-3]}",
    "uniform": "{uniform: [0, 1]}",
}
"""Forms of what a search draws from, besides a list, with an example of each."""
_EXAMPLE = "Write `sweep: {attack.kl_coef: [0.01, 0.1, 1]}`."


def parse_sweep(found: Any, metric: Any, mode: Any) -> SweepSettings:
    """Return the settings of the keys ``sweep``, ``metric`` and ``mode`` of a file.

    ``seed`` below ``sweep`` is that of the search where it is a number, and swept otherwise.

    Raises:
        ConfigError: one of them has another form, or a value is there twice.
    """
    if not isinstance(found, Mapping) or not found:
        raise ConfigError("sweep", "be a mapping of dotted keys to lists", found, _EXAMPLE)
    own = {key: found[key] for key in SEARCH_KEYS if found.get(key) is not None}
    is_search = own.get("search", "grid") != "grid"
    if is_search and isinstance(found.get("seed"), int):
        own["seed"] = found["seed"]
    varied = {key: v for key, v in found.items() if key not in own and key not in SEARCH_KEYS}
    if not varied:
        raise ConfigError("sweep", "vary a key", dict(found), _EXAMPLE)
    grid = {key: _values(key, values, is_search=is_search) for key, values in varied.items()}
    if mode is None and any(is_at_or_below(key, "defence") for key in grid):
        mode = "min"  # who varies a defence looks for the least harm
    given = {"metric": metric, "mode": mode}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        sweep = SweepSettings.model_validate({"grid": grid} | own | given)
    except ValidationError as error:
        explained = explain(error, SweepSettings, "")
        if explained.key in own:
            explained = ConfigError(
                f"sweep.{explained.key}", explained.rule, explained.value, explained.remedy
            )
        raise explained from None
    _refuse_impossible(sweep)
    return sweep


def _values(key: str, values: Any, *, is_search: bool) -> list[Any] | Distribution:
    """Return the values of a swept key as a file gives them."""
    name = f"sweep.{key}"
    if isinstance(values, Mapping) and len(values) == 1 and values.keys() <= DISTRIBUTIONS.keys():
        if not is_search:
            remedy = "Write `search: random` and `num_trials: 24` beside it, or a list."
            raise ConfigError(name, "be a list in a grid", values, remedy)
        ((kind, ends),) = values.items()
        if kind != "choice":
            return _distribution(name, kind, ends)
        values = ends
    if not isinstance(values, list) or not values:
        rule = "be a list with at least one value"
        rule += f", or one of {', '.join(DISTRIBUTIONS.values())}" * is_search
        raise ConfigError(name, rule, values, _EXAMPLE)
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ConfigError(name, "hold each value once", values, f"Remove one {value!r}.")
    return values


def _distribution(name: str, kind: str, ends: Any) -> Distribution:
    is_pair = isinstance(ends, list) and len(ends) == 2
    if not is_pair or not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        remedy = f"Write {DISTRIBUTIONS[kind]}."
        raise ConfigError(f"{name}.{kind}", "be a list of two numbers", ends, remedy)
    low, high = map(float, ends)
    if low >= high or (kind == "log" and low <= 0):
        rule = "ascend" + " and be above 0" * (kind == "log")
        raise ConfigError(f"{name}.{kind}", rule, ends, f"Write {DISTRIBUTIONS[kind]}.")
    return Distribution(scale="log" if kind == "log" else "uniform", low=low, high=high)


def _refuse_impossible(sweep: SweepSettings) -> None:
    """Refuse what would end a search on its way, or have it judge by what no look measures.

    Raises:
        ConfigError: one of them is there.
    """
    num = sweep.num_trials
    if sweep.search == "grid":
        if num is not None:
            remedy = "Remove it, or write `search: random`."
            raise ConfigError("sweep.num_trials", "be left out in a grid", num, remedy)
        refuse_too_many("sweep", sweep.num_points or 0)
    elif num is None or num < 1:
        rule = f"be 1 or more where search is {sweep.search}"
        raise ConfigError("sweep.num_trials", rule, num, "Write `num_trials: 24`.")
    elif sweep.num_points is not None and num > sweep.num_points:
        rule = f"be at most {sweep.num_points}, the combinations of the lists"
        raise ConfigError("sweep.num_trials", rule, num, "Lower it, or write `search: grid`.")
    else:
        refuse_too_many("sweep.num_trials", num)
    if sweep.search == "optuna" and find_spec("optuna") is None:
        rule = "be grid or random where the package optuna is not installed"
        raise ConfigError("sweep.search", rule, sweep.search, "Run bash launch/install.sh.")
    if sweep.scheduler is not None and sweep.metric != "harm":
        rule = "be left out where metric is not harm, which the looks measure"
        raise ConfigError("sweep.scheduler", rule, sweep.scheduler, "Remove one of the two.")


def refuse_unlooked(sweep: SweepSettings, cells: Sequence[ExperimentSettings]) -> None:
    """Refuse a scheduler that would see nothing of a trial before its end.

    Raises:
        ConfigError: a trial does not train, or is not looked at.
    """
    if sweep.scheduler is None:
        return
    rule = "be left out where a trial "
    if any(cell.training is None for cell in cells):
        remedy = "Remove it, or sweep an attack that trains."
        raise ConfigError("sweep.scheduler", f"{rule}does not train", sweep.scheduler, remedy)
    if any(cell.evaluation.num_looks < 2 for cell in cells):
        remedy = "Remove it, or set evaluation.num_looks to 2 or more."
        raise ConfigError(
            "sweep.scheduler", f"{rule}is not looked at on the way", sweep.scheduler, remedy
        )


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


def edges(sweep: SweepSettings) -> dict[str, Point]:
    """Return the first point, and it with each other value of one key or end of it, by its place.

    Where one of them cannot be, a later point could not be either.
    """
    first = sweep.points()[0]
    varied = {
        f"sweep.{key}[{i}]": first | {key: value}
        for key in sweep.grid
        for i, value in enumerate(sweep.options(key))
    }
    return {"sweep[0]": first} | {at: point for at, point in varied.items() if point != first}


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
