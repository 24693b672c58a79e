"""Read YAML departures, merge parts and overrides, resolve plug-ins, refuse what cannot be run."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from rpa_ray.config.errors import ConfigError
from rpa_ray.config.plugins import PluginConfig
from rpa_ray.config.schema import CampaignSettings, ExperimentSettings

Tree: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["run", "campaign"]
KINDS: tuple[Kind, ...] = ("run", "campaign")
PLUGIN_KEYS = ("attack", "defence")
FILE_KEYS = ("kind", "include", "cells", "seeds")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    """A config file, resolved: one cell for ``run``, any number for ``campaign``."""

    kind: Kind
    name: str
    """Stem of the file; results go to ``runs/<name>/``."""
    campaign: CampaignSettings


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> LoadedConfig:
    """Return the resolved config of a YAML file, with ``a.b=value`` overrides applied last.

    Raises:
        ConfigError: the file or one of its keys cannot be run; nothing has been started.
    """
    path = Path(path)
    tree = _read_with_parts(path, seen=())
    kind = tree.pop("kind", "run")
    if kind not in KINDS:
        raise ConfigError("kind", f"be one of {list(KINDS)}", kind, "Correct the first line.")
    cells = tree.pop("cells", None)
    seeds = tree.pop("seeds", None)
    for override in overrides:
        _set(tree, override)
    trees = _expand(tree, cells, seeds, kind)
    settings = tuple(parse_experiment(cell, where) for where, cell in trees)
    return LoadedConfig(
        kind=kind, name=path.stem, campaign=CampaignSettings(name=path.stem, cells=settings)
    )


def parse_experiment(tree: Mapping[str, Any], where: str = "") -> ExperimentSettings:
    """Return one cell's settings from plain data; ``where`` prefixes the keys in errors."""
    resolved = dict(tree)
    for key in PLUGIN_KEYS:
        resolved[key] = _plugin_config(key, resolved.get(key, "none"), where)
    try:
        settings = ExperimentSettings.model_validate(resolved)
    except ValidationError as error:
        raise _explain(error, ExperimentSettings, where) from None
    _refuse_impossible_pair(settings, where)
    return settings


def parse_tree(tree: Mapping[str, Any], overrides: Iterable[str] = ()) -> ExperimentSettings:
    """Return the settings of one cell given as plain data, with ``a.b=value`` overrides."""
    merged = dict(tree)
    for override in overrides:
        _set(merged, override)
    return parse_experiment(merged)


def _read_with_parts(path: Path, seen: tuple[Path, ...]) -> Tree:
    if path in seen:
        raise ConfigError("include", "not include itself", str(path), "Remove the circle.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(
            "config", "be a readable YAML file", str(path), f"{error.strerror}. Check the path."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError("config", "be valid YAML", str(path), f"{error}") from None
    if not isinstance(tree, dict):
        raise ConfigError("config", "be a mapping of keys", str(path), "Start with `kind: run`.")
    merged: Tree = {}
    for part in tree.pop("include", []):
        merged = merge(merged, _read_with_parts(path.parent / part, (*seen, path)))
    return merge(merged, tree)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    """Return ``base`` with ``top`` laid over it; a plug-in of another name replaces the old one."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if key in PLUGIN_KEYS:
            out[key] = _merge_plugin(old, value)
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def _merge_plugin(old: Any, new: Any) -> Any:
    if isinstance(new, str):
        return {"name": new}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        same = new.get("name", old.get("name")) == old.get("name")
        return {**old, **new} if same else dict(new)
    return new


def _set(tree: Tree, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError("--set", "have the form key=value", override, "Write --set seed=1.")
    value = yaml.safe_load(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    merged = merge(tree, value)
    tree.clear()
    tree.update(merged)


def _expand(tree: Tree, cells: Any, seeds: Any, kind: Kind) -> list[tuple[str, Tree]]:
    if kind == "run":
        if cells is not None or seeds is not None:
            raise ConfigError(
                "cells", "stand in a campaign", "kind: run", "Write `kind: campaign`."
            )
        return [("", tree)]
    if not isinstance(cells, list) or not cells:
        raise ConfigError(
            "cells", "be a list with at least one cell", cells, "Write `cells: [{}]` for one cell."
        )
    expanded = []
    for i, cell in enumerate(cells):
        if not isinstance(cell, Mapping):
            raise ConfigError(f"cells[{i}]", "be a mapping of departures", cell, "Write keys.")
        merged = merge(tree, cell)
        for seed in seeds if seeds is not None else [merged.get("seed", 0)]:
            expanded.append((f"cells[{i}].", {**merged, "seed": seed}))
    return expanded


def _plugin_config(key: str, value: Any, where: str) -> PluginConfig:
    from rpa_ray.attacks import ATTACKS
    from rpa_ray.defences import DEFENCES

    if isinstance(value, PluginConfig):
        return value
    tree = {"name": value} if isinstance(value, str) else value
    table = {"attack": ATTACKS, "defence": DEFENCES}[key]
    name = tree.get("name") if isinstance(tree, Mapping) else None
    if name not in table:
        raise ConfigError(
            f"{where}{key}", f"name one of {sorted(table)}", value, _nearest(name, table)
        )
    config_class: type[PluginConfig] = table[name].Config
    try:
        return config_class.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, config_class, f"{where}{key}.") from None


def _refuse_impossible_pair(settings: ExperimentSettings, where: str) -> None:
    from rpa_ray.attacks import ATTACKS
    from rpa_ray.defences import DEFENCES

    attack, defence = ATTACKS[settings.attack.name], DEFENCES[settings.defence.name]
    missing = defence.needs_attack - attack.requires
    if missing:
        able = sorted(n for n, a in ATTACKS.items() if defence.needs_attack <= a.requires)
        raise ConfigError(
            f"{where}defence",
            f"work with an attack that has {sorted(m.value for m in missing)}",
            f"{settings.defence.name} with {settings.attack.name}",
            f"Choose one of the attacks {able}, or another defence.",
        )


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = where + ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return ConfigError(
            key, f"be a known key: {sorted(known)}", location[-1], _nearest(location[-1], known)
        )
    if first["type"] == "missing":
        return ConfigError(key, "be given", None, "Add it.")
    rule = first["msg"][0].lower() + first["msg"][1:].replace("Input should", "")
    rule = rule.replace("input should be", "be").replace("input should", "")
    return ConfigError(key, rule.strip(), first["input"], "Correct the value.")


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    for name in location:
        annotation = model.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _nearest(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "Choose one of those."
