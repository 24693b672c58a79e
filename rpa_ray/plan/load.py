"""From a config file to typed cells: resolve plug-ins, expand cells, refuse what cannot be run."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from rpa_ray.config import EMBEDDED_MODELS, ConfigError, PluginConfig, Point, SweepSettings
from rpa_ray.config.errors import nearest
from rpa_ray.config.schema import CampaignSettings, Dtype, ExperimentSettings, with_dtype
from rpa_ray.plan.expand import (
    CellTree,
    departures_of,
    expanded,
    refuse_several_clusters,
    refuse_twins,
    trials,
)
from rpa_ray.plan.explain import explain
from rpa_ray.plan.files import (
    DEFAULT_SCALE,
    PLUGIN_KEYS,
    Tree,
    merge,
    nested,
    parse_override,
    read_cluster,
    read_with_parts,
    with_overrides,
)
from rpa_ray.plan.grid import SEARCH_KEYS, edges, parse_sweep, refuse_overridden, refuse_unlooked
from rpa_ray.plan.methods import (
    defence_config,
    plugin_config,
    plugin_configs,
    refuse_impossible_pair,
)
from rpa_ray.recipes.content import content_key
from rpa_ray.run_folder.names import MAX_NAME_BYTES, cut_to_bytes

Kind: TypeAlias = Literal["run", "campaign", "sweep"]
KINDS: tuple[Kind, ...] = ("run", "campaign", "sweep")
KIND_OF_KEY: dict[str, Kind] = {
    **dict.fromkeys(("cells", "grid", "seeds"), "campaign"),
    **dict.fromkeys(("sweep", "metric", "mode"), "sweep"),
}
"""Keys that are no setting of a cell, with the kind of file in which they stand."""
KEYS_OF_FILE = [["seeds"], *(["sweep", key] for key in SEARCH_KEYS)]
"""Those that an override may set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    """A config file, resolved: one cell for ``run``, any number for the other kinds."""

    kind: Kind
    name: str
    """Stem of the file; results go to ``runs/<name>/``."""
    campaign: CampaignSettings
    wheres: tuple[str, ...]
    """Prefix of the keys of each cell in errors."""
    sweep: SweepSettings | None = None
    """What varies in a ``sweep``."""
    points: tuple[Point, ...] = ()
    """Of a sweep, those that are known: one a cell."""
    settings_at: Callable[[Sequence[Point]], tuple[ExperimentSettings, ...]] | None = None
    """Returns the cells of a sweep at any points."""

    @property
    def num_undrawn(self) -> int:
        """Return how many trials a search has whose points follow from the results of others."""
        num = None if self.sweep is None else self.sweep.num_trials
        return 0 if num is None else max(num - len(self.points), 0)

    @property
    def is_scheduled(self) -> bool:
        """Return whether a cell may be stopped at a look."""
        return self.sweep is not None and self.sweep.scheduler is not None


def load_config(
    path: str | Path,
    overrides: Iterable[str] = (),
    scale: str = DEFAULT_SCALE,
    cluster: str | None = None,
) -> LoadedConfig:
    """Return the resolved config of a YAML file.

    Overrides ``a.b=value`` are laid over every cell, those of an attack's or a defence's settings
    where it has them; one of a key that a cell sets itself is refused. ``seeds=[...]`` replaces the
    seeds of a campaign, ``sweep.num_trials=48`` those of a search.
    ``scale`` names the folder of parts whose path holds ``{scale}``; ``cluster``, a file of
    ``configs/cluster`` or a path, the settings of the cluster in place of those of the file.

    Raises:
        ConfigError: the file or one of its keys cannot be run; nothing has been started.
    """
    path, overrides = Path(path), list(overrides)
    tree = read_with_parts(path, scale)
    kind = _kind(tree.pop("kind", "run"))
    of_file = [text for text in overrides if parse_override(text)[0] in KEYS_OF_FILE]
    overrides = [text for text in overrides if text not in of_file]
    tree = with_overrides(tree, of_file)
    own = _take_keys_of(kind, tree)
    if cluster is not None:
        tree["cluster"] = read_cluster(cluster)
    tree = _with_shared_overrides(tree, overrides)
    sweep, points, settings_at, trees = None, list[Point](), None, list[CellTree]()
    if kind == "run":
        trees = [CellTree(where="", departures={}, tree=tree)]
    elif kind == "campaign":
        trees = expanded(tree, departures_of(own["cells"], own["grid"]), own["seeds"])
    else:
        sweep = parse_sweep(own["sweep"], own["metric"], own["mode"])
        refuse_overridden(sweep, overrides)
        points, settings_at = sweep.points(), _settings_of(sweep, tree, overrides)
        if sweep.search != "grid":
            extreme = edges(sweep)
            refuse_twins(settings_at(list(extreme.values())), list(extreme))
    if sweep is not None and settings_at is not None:
        settings, wheres = settings_at(points), ("",) * len(points)
        refuse_unlooked(sweep, settings)
    else:
        trees = _overridden(trees, tree, overrides)
        if cluster is not None:
            _refuse_hidden(trees, ["cluster"], "--cluster", cluster)
        settings, wheres = _parse_all(trees), tuple(cell.where for cell in trees)
    names = _names(wheres)
    refuse_several_clusters(settings, names)
    refuse_twins(settings, names)
    name = path.stem if scale == DEFAULT_SCALE else f"{path.stem}-{scale}"
    return LoadedConfig(
        kind=kind,
        name=name,
        campaign=CampaignSettings(name=name, cells=settings),
        wheres=wheres,
        sweep=sweep,
        points=tuple(points),
        settings_at=settings_at,
    )


def _settings_of(
    sweep: SweepSettings, tree: Tree, overrides: Sequence[str]
) -> Callable[[Sequence[Point]], tuple[ExperimentSettings, ...]]:
    """Return what returns the cells of a sweep at some points."""

    def settings_at(points: Sequence[Point]) -> tuple[ExperimentSettings, ...]:
        try:
            return _parse_all(_overridden(trials(tree, points), tree, overrides))
        except ConfigError as error:
            raise sweep.named(error) from None

    return settings_at


def _names(wheres: Sequence[str]) -> list[str]:
    return [where or f"sweep[{i}]." for i, where in enumerate(wheres)]


def _parse_all(trees: Sequence[CellTree]) -> tuple[ExperimentSettings, ...]:
    for cell in trees:
        _check_own_keys(_written_out(cell.tree), cell.where)
    return tuple(parse_experiment(cell.tree, cell.where) for cell in trees)


def with_native_dtype(loaded: LoadedConfig, native: Dtype) -> LoadedConfig:
    """Return a config with a type of weights in every cell, for hardware that computes ``native``.

    Raises:
        ConfigError: two cells, of which one names that type, are the same now.
    """
    return with_cells(loaded, lambda cell: with_dtype(cell, native))


def with_cells(
    loaded: LoadedConfig, changed: Callable[[ExperimentSettings], ExperimentSettings]
) -> LoadedConfig:
    """Return a config with every cell changed.

    Raises:
        ConfigError: two cells are the same now.
    """
    cells = tuple(map(changed, loaded.campaign.cells))
    refuse_twins(cells, _names(loaded.wheres))
    return replace(loaded, campaign=loaded.campaign.model_copy(update={"cells": cells}))


def evaluation_of(checkpoint: str, overrides: Iterable[str] = ()) -> LoadedConfig:
    """Return a run that measures a model as it is; a folder has a key of its content in the name.

    Raises:
        ConfigError: an override cannot be.
    """
    cell = parse_tree({"model": {"path": checkpoint}, "attack": "none"}, overrides)
    name = cut_to_bytes(f"evaluate-{Path(checkpoint).name}", MAX_NAME_BYTES - 9)
    if checkpoint not in EMBEDDED_MODELS and os.path.exists(checkpoint):
        name += f"-{content_key(checkpoint)[:8]}"
    campaign = CampaignSettings(name=name, cells=(cell,))
    return LoadedConfig(kind="run", name=name, campaign=campaign, wheres=("",))


def parse_experiment(tree: Mapping[str, Any], where: str = "") -> ExperimentSettings:
    """Return one cell's settings from plain data; ``where`` prefixes the keys in errors.

    Raises:
        ConfigError: a key is unknown, a value out of range, or the defence has no such attack.
    """
    tree = _written_out(tree)
    _check_own_keys(tree, where)
    plugins = {
        "attack": plugin_config("attack", tree.get("attack", "none"), where),
        "defence": defence_config(tree.get("defence", "none"), where),
    }
    settings = ExperimentSettings.model_validate({**tree, **plugins})
    refuse_impossible_pair(settings, where)
    return settings


def parse_tree(tree: Mapping[str, Any], overrides: Iterable[str] = ()) -> ExperimentSettings:
    """Return the settings of one cell given as plain data, with ``a.b=value`` overrides."""
    return parse_experiment(with_overrides(tree, overrides))


def _kind(kind: Any) -> Kind:
    if kind not in KINDS:
        raise ConfigError("kind", f"be one of {list(KINDS)}", kind, nearest(kind, KINDS))
    known: Kind = kind
    return known


def _take_keys_of(kind: Kind, tree: Tree) -> dict[str, Any]:
    """Take the keys that are no settings of a cell out of a tree; refuse those of another kind."""
    taken = {key: tree.pop(key, None) for key in KIND_OF_KEY}
    for key, value in taken.items():
        whose = KIND_OF_KEY[key]
        if value is not None and whose != kind:
            raise ConfigError(key, f"stand in a {whose}", value, f"Write `kind: {whose}`.")
    return taken


def _with_shared_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """Return what cells share with the overrides of it laid over, in order."""
    for override in overrides:
        keys, value = parse_override(override)
        if _has_setting(tree, keys):
            tree = merge(tree, nested(keys, value))
    return tree


def _overridden(
    trees: Sequence[CellTree], shared: Tree, overrides: Iterable[str]
) -> list[CellTree]:
    """Return the cells, with the overrides of settings that only their own plug-ins have.

    One that no plug-in has is laid over every cell, so that it is refused by its name.

    Raises:
        ConfigError: a cell sets the key of an override itself.
    """
    for override in overrides:
        keys, value = parse_override(override)
        _refuse_hidden(trees, keys, "--set", override)
        able = [_has_setting(cell.tree, keys) for cell in trees]
        laid = nested(keys, value)
        trees = [
            replace(cell, tree=merge(cell.tree, laid))
            if (has or not any(able)) and not _shares(cell.tree, shared, keys)
            else cell
            for cell, has in zip(trees, able, strict=True)
        ]
    return list(trees)


def _refuse_hidden(trees: Iterable[CellTree], keys: Sequence[str], option: str, value: str) -> None:
    for cell in trees:
        held: Any = cell.departures
        for key in keys:
            held = held.get(key, cell) if isinstance(held, Mapping) else cell
        if held is not cell:
            raise ConfigError(
                option,
                f"name a key that no cell sets ({cell.where}{'.'.join(keys)} is {held!r})",
                value,
                "Change the cell in the file.",
            )


def _has_setting(tree: Tree, keys: Sequence[str]) -> bool:
    """Return whether keys name a setting of the plug-in; those of anything else always do."""
    if len(keys) == 1 or keys[0] not in PLUGIN_KEYS:
        return True
    config = plugin_configs(keys[0]).get(_plugin_name(tree, keys[0]))
    return config is not None and keys[1] in config.model_fields


def _shares(tree: Tree, shared: Tree, keys: Sequence[str]) -> bool:
    """Return whether a cell has what its neighbours share at the keys, overrides included."""
    if len(keys) == 1 or keys[0] not in PLUGIN_KEYS:
        return True
    alike = _plugin_name(tree, keys[0]) == _plugin_name(shared, keys[0])
    return alike and _has_setting(shared, keys)


def _plugin_name(tree: Mapping[str, Any], key: str) -> str:
    value = tree.get(key, "none")
    return str(value.get("name") if isinstance(value, Mapping) else value)


def _written_out(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a cell's tree with ``model: chat`` as the group that it is short for."""
    model = tree.get("model")
    return {**tree, "model": {"path": model}} if isinstance(model, str) else tree


def _check_own_keys(tree: Mapping[str, Any], where: str) -> None:
    """Refuse what is wrong beside the plug-ins; theirs need torch, whose import takes seconds."""
    stand_in = PluginConfig(name="none")
    try:
        ExperimentSettings.model_validate({**tree, **dict.fromkeys(PLUGIN_KEYS, stand_in)})
    except ValidationError as error:
        raise explain(error, ExperimentSettings, where, partial(_plugins_of, tree)) from None


def _plugins_of(tree: Mapping[str, Any]) -> dict[str, type[PluginConfig]]:
    """Return the settings of the attack and the defences that a cell names, by their key."""
    found = {}
    for key in PLUGIN_KEYS:
        value = tree.get(key, "none")
        parts = {key: value}
        if isinstance(value, list):  # defences that run as one
            parts = {f"{key}[{i}]": part for i, part in enumerate(value)}
        for at, part in parts.items():
            if (config := plugin_configs(key).get(_plugin_name({key: part}, key))) is not None:
                found[at] = config
    return found
