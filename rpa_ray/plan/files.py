"""From YAML files and ``--set`` to one tree of plain data: reading, including, merging."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from rpa_ray.config.errors import ConfigError

Tree: TypeAlias = dict[str, Any]
PLUGIN_KEYS = ("attack", "defence")
DEPARTURE_KEYS = ("cells", "grid")
"""Keys of a campaign that hold departures from what its cells share."""
DEFAULT_SCALE = "tiny"
MAX_VALUES = 1_000_000
"""Of a file with all its aliases; ten thousand cells that depart in ten settings have a tenth."""


class _Loader(yaml.SafeLoader):
    """Reads 5e-5 as a number, and refuses a key that is no text or stands twice."""

    num_keys = 0
    """Of all mappings so far, those merged into them among them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                problem = f"the key {key!r} must be a text; quote it"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Before a mapping is merged into another, so that merges of merges end in time.
        self.num_keys += len(node.value)
        if self.num_keys > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} keys, each merge counted"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


# YAML 1.1 wants a dot and a signed exponent in a float and reads 5e-5 as a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_with_parts(path: Path, scale: str = DEFAULT_SCALE) -> Tree:
    """Return the tree of a file over those of the parts that it and its departures include.

    ``{scale}`` in the path of a part stands for ``scale``: a table is one file for the embedded
    models and for those of the literature.

    Raises:
        ConfigError: a file cannot be read, is no mapping, or includes itself.
    """
    try:
        return _read(path, key="config", above=(), scale=scale)
    except RecursionError:
        raise _too_deep("config", str(path)) from None


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
        return keys, _parsed(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("--set", f"hold YAML ({_reason(error)})", override, "Quote it.") from None
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


def _read(path: Path, *, key: str, above: tuple[Path, ...], scale: str) -> Tree:
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, characters no name can have
        raise ConfigError(key, "be a path that can be", str(path), "Correct it.") from None
    if resolved in above:
        raise ConfigError("include", "not include itself", str(path), "Remove the circle.")
    tree = _read_one(path, key)

    def with_parts(node: Tree, where: str) -> Tree:
        parts = node.pop("include", None) or []
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ConfigError(where, "be a list of files", parts, "Write `include: [a.yaml]`.")
        merged: Tree = {}
        for part in parts:
            file = path.parent / part.replace("{scale}", scale)
            merged = merge(merged, _read(file, key=where, above=(*above, resolved), scale=scale))
        return merge(merged, node)

    def in_departures(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [in_departures(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
        if isinstance(value, dict):
            return with_parts(dict(value), f"{where}.include")
        return value

    whole = with_parts(tree, "include")
    for name in DEPARTURE_KEYS:
        if name in tree:
            whole[name] = in_departures(tree[name], name)
    return whole


def _read_one(path: Path, key: str) -> Tree:
    try:
        tree = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            key,
            "name a YAML file that can be read",
            str(path),
            f"{error.strerror}: check the path.",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            key, "name a text file in UTF-8", str(path), "Check the path or convert it."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            key, f"hold valid YAML ({_reason(error)})", str(path), "Correct that line."
        ) from None
    if not isinstance(tree, dict | None):
        raise ConfigError(key, "be a mapping of keys", str(path), "Begin with `kind: run`.")
    return tree or {}


def _too_deep(key: str, value: str) -> ConfigError:
    return ConfigError(
        key, "be nested less deeply", value, "Write it flat, and no alias inside what it names."
    )


def _parsed(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: aliases of it stand for more values than any experiment has, or a value is
            none, such as a date of a thirteenth month.
    """
    value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    if _num_values(value, {}) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values, each alias counted")
    return value


def _num_values(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are in a value; ``known`` holds those of each list or mapping.

    Raises:
        RecursionError: it holds itself.
    """
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(one, known) for one in inner)
    return known[id(value)]


def _reason(error: yaml.YAMLError | ValueError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem = getattr(error, "problem", None) or "something is wrong"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
