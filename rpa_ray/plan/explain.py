"""From a pydantic error to one message in the words of the configuration."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rpa_ray.config.errors import NOT_NEAR, ConfigError, nearest_words

_VERY_LIKE = 0.6
"""Likeness, as `difflib` counts it, with which a key of the same place is meant and no other."""
_LIKE_ELSEWHERE = 0.8
"""Likeness from which a key of another place may be meant."""


def explain(
    error: ValidationError,
    model: type[BaseModel],
    where: str,
    plugins: Callable[[], Mapping[str, type[BaseModel]]] = dict,
    *,
    at: str = "",
) -> ConfigError:
    """Return the error for the first thing that is wrong.

    An unknown key comes first: where a name is misspelt, the rest may only follow from it.

    Args:
        error: What pydantic found.
        model: The settings that it found it in.
        where: Prefix of the keys of a cell.
        plugins: Gives by the key that they stand at settings whose keys may have been meant too;
            asked only about an unknown key, since it may take a large import.
        at: Key that ``model`` stands at in a cell, followed by a dot; nothing for the cell itself.
    """
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path, known, field = _find(model, first["loc"])
    key = where + at + path
    match first["type"]:
        case "extra_forbidden":
            wrong = str(first["loc"][-1])
            key = ".".join(part for part in (key.rstrip("."), wrong) if part)
            leaves = _leaves(model, at)
            for plugin_at, plugin in plugins().items():
                leaves |= _leaves(plugin, f"{plugin_at}.")
            meant = _meant(wrong, known, leaves)
            remedy = f"Did you mean {' or '.join(map(repr, meant))}?" if meant else NOT_NEAR
            return ConfigError(key, "be a known key", wrong, f"{remedy} Known: {sorted(known)}.")
        case "missing":
            return ConfigError(key, "be given", None, "Add it.")
        case "model_type" | "dict_type":
            return ConfigError(key, "be a mapping of keys", first["input"], "Write its keys below.")
    rule = re.sub(r"^(Value error, (must )?|\w+ should )", "", first["msg"])
    return ConfigError(key, rule, first["input"], _remedy(field))


def _find(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[str, list[str], FieldInfo | None]:
    """Return the dotted key of a location, the keys known there, and the field it ends at.

    A location also holds names of union members, which no user has written: they are left out.
    """
    models, path = [model], ""
    field: FieldInfo | None = None
    for part in location:
        fields = {name: f for m in models for name, f in m.model_fields.items()}
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in fields:
            field = fields[part]
            path += f".{part}"
            models = list(_models_in(field.annotation))
    known = [name for m in models for name in m.model_fields]
    return path.removeprefix("."), known, field


def _meant(wrong: str, known: list[str], leaves: Mapping[str, str]) -> list[str]:
    """Return what an unknown key may stand for: one of its place, or dotted keys of another."""

    def ending(names: list[str]) -> list[str]:
        return [key for key, leaf in leaves.items() if leaf in names]

    return (
        nearest_words(wrong, known, cutoff=_VERY_LIKE)
        or ending([wrong.lower()])
        or nearest_words(wrong, known)
        or ending(nearest_words(wrong, leaves.values(), cutoff=_LIKE_ELSEWHERE))
    )


def _leaves(model: type[BaseModel], at: str) -> dict[str, str]:
    """Return the last part of each dotted key of a settings class, and of those in it."""
    found = {}
    for field, info in model.model_fields.items():
        found[f"{at}{field}"] = field
        for inner in _models_in(info.annotation):
            found |= _leaves(inner, f"{at}{field}.")
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes in an annotation: ``A``, ``A | None``, ``tuple[A, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _remedy(field: FieldInfo | None) -> str:
    if field is None or field.is_required() or isinstance(field.default, BaseModel):
        return "Correct the value."
    return f"Correct the value; the default is {field.default!r}."
