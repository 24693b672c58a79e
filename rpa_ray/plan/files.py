"""From YAML files and ``--set`` to one tree of plain data: reading, including, merging."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from rpa_ray.config.errors import ConfigError, nearest
from rpa_ray.config.schema import EMBEDDED_MODELS, PATH_FIELDS
from rpa_ray.plan.yaml_text import parsed, reason

Tree: TypeAlias = dict[str, Any]
PLUGIN_KEYS = ("attack", "defence")
DEPARTURE_KEYS = ("cells", "grid")
"""Keys of a campaign that hold departures from what its cells share."""
DEFAULT_SCALE = "tiny"
CLUSTERS = Path(__file__).parents[2] / "configs" / "cluster"
MAX_FILE_BYTES = 4 * 2**20
"""Of one file; ten thousand cells that depart in ten settings have half of it."""


def read_with_parts(path: Path, scale: str = DEFAULT_SCALE) -> Tree:
    """Return the tree of a file over those of the parts that it and its departures include.

    ``{scale}`` in the path of a part stands for ``scale``: a table is one file for the embedded
    models and for those of the literature.

    Paths of data and models that lie beside the file that names them become paths from here.

    Raises:
        ConfigError: a file cannot be read, is no mapping, or includes itself, or no part names the
            scale that was asked for.
    """
    reading = _Reading(scale)
    try:
        tree = _read(path, reading, key="config", above=())
    except RecursionError:
        raise _too_deep("config", str(path)) from None
    if scale != DEFAULT_SCALE and not reading.names_scale:
        rule = "be left out where no part that the file includes has {scale} in its path"
        raise ConfigError("--scale", rule, scale, "Remove it.")
    return tree


def read_cluster(name: str) -> Any:
    """Return the settings of a cluster by the name of a file in ``configs/cluster``, or by a path.

    Raises:
        ConfigError: there is no such file, or it holds other settings too.
    """
    known = {path.stem: path for path in sorted(CLUSTERS.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        rule = f"name a file of configs/cluster ({', '.join(known)}) or a path"
        raise ConfigError("--cluster", rule, name, nearest(name, known))
    tree = read_with_parts(path)
    if tree.keys() != {"cluster"}:
        remedy = "Write the settings below `cluster:`, and nothing else."
        raise ConfigError("--cluster", "name a file with `cluster` alone", sorted(tree), remedy)
    return tree["cluster"]


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    """Return ``base`` with ``top`` laid over it; a plug-in of another name replaces the old one.

    ``model: chat`` is short for ``model: {path: chat}``.
    """
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if key in PLUGIN_KEYS:
            out[key] = _merge_plugin(old, value)
        elif key == "model" and isinstance(old, str) and isinstance(value, Mapping):
            out[key] = {"path": old, **value}
        elif key == "model" and isinstance(old, Mapping) and isinstance(value, str):
            out[key] = {**old, "path": value}
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def with_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> Tree:
    """Return a tree with ``a.b=value`` texts laid over it, in order.

    Raises:
        ConfigError: a text has another form.
    """
    out = dict(tree)
    for override in overrides:
        out = merge(out, nested(*parse_override(override)))
    return out


def nested(keys: Sequence[str], value: Any) -> Any:
    """Return a value below its keys, the first outermost."""
    for name in reversed(keys):
        value = {name: value}
    return value


def parse_override(override: str) -> tuple[list[str], Any]:
    """Return the keys and the value of ``a.b=value``; the value is YAML."""
    key, separator, text = override.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError("--set", "have the form key=value", override, "Write --set data.rho=0.5.")
    try:
        return keys, parsed(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("--set", f"hold YAML ({reason(error)})", override, "Quote it.") from None
    except RecursionError:
        raise _too_deep("--set", override) from None


def _merge_plugin(old: Any, new: Any) -> Any:
    if isinstance(old, str):
        old = {"name": old}
    if isinstance(new, str):
        new = {"name": new}
        if isinstance(old, Mapping) and "name" in old:  # named alone: with its defaults
            return new
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    name, old_name = new.get("name"), old.get("name")
    if name == "none" or (None not in (name, old_name) and name != old_name):
        return dict(new)
    return {**old, **new}


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    scale: str
    names_scale: bool = False
    """Whether some part has the scale in its path."""
    known: dict[Path, Tree] = field(default_factory=dict)
    """Files with their parts: each is read once."""


def _read(path: Path, reading: _Reading, *, key: str, above: tuple[Path, ...]) -> Tree:
    """Return the tree of a file with its parts."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, characters no name can have
        raise ConfigError(key, "be a path that can be", str(path), "Correct it.") from None
    if resolved in above:
        raise ConfigError("include", "not include itself", str(path), "Remove the circle.")
    if resolved in reading.known:
        return reading.known[resolved]
    tree = _from_here(_read_one(path, key, above[-1] if above else None), path.parent)

    def with_parts(node: Tree, where: str) -> Tree:
        parts = node.pop("include", None) or []
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ConfigError(where, "be a list of files", parts, "Write `include: [a.yaml]`.")
        merged: Tree = {}
        for part in parts:
            reading.names_scale |= "{scale}" in part
            file = path.parent / part.replace("{scale}", reading.scale)
            above_part = (*above, resolved)
            merged = _laid_over(merged, _read(file, reading, key=where, above=above_part))
        return _laid_over(merged, node)

    def in_departures(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [in_departures(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
        if isinstance(value, dict):
            return with_parts(dict(value), f"{where}.include")
        return value

    whole = with_parts(dict(tree), "include")
    for name in DEPARTURE_KEYS:
        if name in tree:
            whole[name] = in_departures(tree[name], name)
    reading.known[resolved] = whole
    return whole


def _laid_over(base: Tree, top: Tree) -> Tree:
    """Return a part over those before it; a cluster of another layout replaces the old one."""
    clusters = [tree.get("cluster") for tree in (base, top)]
    layouts = [one.get("layout") for one in clusters if isinstance(one, Mapping)]
    if len(layouts) == 2 and None not in layouts and layouts[0] != layouts[1]:
        base = {key: value for key, value in base.items() if key != "cluster"}
    return merge(base, top)


def _from_here(value: Any, folder: Path, key: str = "") -> Any:
    """Return a tree in which paths that lead somewhere from a folder do so from here."""
    if isinstance(value, dict):
        return {name: _from_here(inner, folder, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_here(inner, folder, key) for inner in value]
    if not isinstance(value, str) or not key.endswith(PATH_FIELDS) or value in EMBEDDED_MODELS:
        return value
    beside = os.path.join(folder, value)
    return beside if value and os.path.exists(beside) else value


def _read_one(path: Path, key: str, named_in: Path | None) -> Tree:
    """Return the tree of a file alone; of a part, errors say which file names it."""
    whose = "" if named_in is None else f", from the folder of {named_in}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        remedy = f"{error.strerror}: check the path{whose}."
        raise ConfigError(key, "name a YAML file that can be read", str(path), remedy) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        rule = f"name a text file in UTF-8 (line {line}: byte {content[error.start]:#04x})"
        remedy = "Check the path or convert it."
        raise ConfigError(key, rule, str(path), remedy) from None
    if len(content) > MAX_FILE_BYTES:
        rule = f"name a file of at most {MAX_FILE_BYTES >> 20} MiB"
        raise ConfigError(key, rule, str(path), "Check the path.")
    try:
        tree = parsed(text)
    except (yaml.YAMLError, ValueError) as error:
        rule = f"hold valid YAML ({reason(error)})"
        raise ConfigError(key, rule, str(path), "Correct that line.") from None
    except RecursionError:
        raise _too_deep(key, str(path)) from None
    if not isinstance(tree, dict | None):
        raise ConfigError(key, "be a mapping of keys", str(path), "Begin with `kind: run`.")
    return tree or {}


def _too_deep(key: str, value: str) -> ConfigError:
    return ConfigError(
        key, "be nested less deeply", value, "Write it flat, and no alias inside what it names."
    )
