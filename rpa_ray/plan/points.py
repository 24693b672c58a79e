"""Where the trials of a search are whose points follow from results: a file in its folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rpa_ray.config import Point
from rpa_ray.plan.expand import refuse_twins
from rpa_ray.plan.load import LoadedConfig
from rpa_ray.run_folder.files import read_json, write_json
from rpa_ray.run_folder.names import SEARCH


def with_points(config: LoadedConfig, points: Sequence[Point]) -> LoadedConfig:
    """Return a sweep with one cell for each of other points.

    Raises:
        ConfigError: a cell cannot be, or is there twice.
    """
    assert config.settings_at is not None
    cells = config.settings_at(points)
    refuse_twins(cells, [f"sweep[{i}]" for i, _ in enumerate(points)])
    campaign = config.campaign.model_copy(update={"cells": cells})
    wheres = ("",) * len(cells)
    return replace(config, points=tuple(points), wheres=wheres, campaign=campaign)


def write_points(folder: Path, config: LoadedConfig) -> None:
    """Write the points of a search, for the next command that goes on with it."""
    write_json(folder / SEARCH, {"key": _key(config), "points": list(config.points)})


def with_points_of(folder: Path, config: LoadedConfig) -> LoadedConfig:
    """Return a search with the points that an earlier command wrote, if it was the same search.

    That is one with the same settings of the trials, values and seed; with more trials it goes on.
    """
    found = read_json(folder / SEARCH, dict)
    if config.sweep is None or found is None or found.get("key") != _key(config):
        return config
    known: Sequence[Point] = found["points"]
    points = [*known, *config.points[len(known) :]][: config.sweep.num_trials]
    return with_points(config, points)


def _key(config: LoadedConfig) -> str:
    """Return what two searches share only if they may have the same points."""
    assert config.sweep is not None and config.settings_at is not None
    (first,) = config.settings_at(config.sweep.points()[:1])
    settings = first.to_yaml_dict()
    del settings["cluster"]
    varied = config.sweep.model_dump(mode="json", exclude={"num_trials", "scheduler"})
    what = json.dumps([settings, varied], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:16]
