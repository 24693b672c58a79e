"""What each data set must hold, and how a row that does not is named. Nothing is read here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from rpa_ray.data.errors import DataError

Row: TypeAlias = dict[str, object]
"""One row as it was read; its columns follow the schema once :func:`check_rows` has passed."""

NUM_NAMED_ROWS = 10
"""An error names at most so many rows."""

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"


class Kind(StrEnum):
    """What the values of a column are, in the words of an error."""

    TEXT = "a non-empty text"
    DIALOGUE = f"a dialogue with {HUMAN!r} and {ASSISTANT!r}"
    FLAG = "true or false"
    CHOICE = "0 or 1"
    FLAGS = "an object of true or false"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column and the kind of its values."""

    name: str
    kind: Kind
    required: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """The columns of a data set and where its public copy keeps the two splits."""

    columns: tuple[Column, ...]
    hub_splits: Mapping[str, str]
    """Our split name to the public copy's."""
    hub_folder: str | None = None
    """Sub-folder of the public copy."""


def _columns(kind: Kind, *names: str, required: bool = True) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind=kind, required=required) for name in names)


_SAME_SPLITS = {"train": "train", "test": "test"}

SCHEMAS: Mapping[str, Schema] = {
    "beavertails": Schema(
        columns=_columns(Kind.TEXT, "prompt", "response")
        + _columns(Kind.FLAG, "is_safe")
        + _columns(Kind.FLAGS, "category", required=False),
        hub_splits={"train": "330k_train", "test": "30k_test"},
    ),
    "safe_rlhf": Schema(
        columns=_columns(Kind.TEXT, "prompt", "response_0", "response_1")
        + _columns(Kind.FLAG, "is_response_0_safe", "is_response_1_safe")
        + _columns(Kind.CHOICE, "better_response_id", "safer_response_id"),
        hub_splits=_SAME_SPLITS,
    ),
    "helpful": Schema(
        columns=_columns(Kind.DIALOGUE, "chosen", "rejected"),
        hub_splits=_SAME_SPLITS,
        hub_folder="helpful-base",
    ),
    "tldr": Schema(
        columns=_columns(Kind.TEXT, "prompt", "chosen", "rejected")
        + _columns(Kind.TEXT, "label", required=False),
        hub_splits=_SAME_SPLITS,
    ),
}
"""By the name of the format, which for the two harmlessness sets is also ``data.name``."""


def check_rows(schema: Schema, rows: Sequence[Row], *, origin: str, path_key: str) -> None:
    """Return if every row follows the schema.

    Args:
        schema: What must hold.
        rows: The rows in the order of the source; an error counts them from 1.
        origin: The source in words, for the error.
        path_key: The config path that names the source.

    Raises:
        DataError: No rows, a column that is not there, or values of another kind.
    """
    if not rows:
        raise DataError.broken_rule(
            path_key, "hold at least one row", f"none in {origin}", "Check how it was written."
        )
    present = {column for row in rows for column in row}
    required = [column.name for column in schema.columns if column.required]
    missing = [name for name in required if name not in present]
    if missing:
        raise DataError.broken_rule(
            path_key,
            f"have the columns {required}",
            f"{origin} without {missing} (its columns: {sorted(present)})",
            "Rename or add them, or choose the data set whose format this is.",
        )
    for column in schema.columns:
        if column.name in present:
            _check_column(column, rows, origin=origin, path_key=path_key)


def _check_column(column: Column, rows: Sequence[Row], *, origin: str, path_key: str) -> None:
    problems = [_problem(column, row.get(column.name)) for row in rows]
    first = next((problem for problem in problems if problem), None)
    if first is None:
        return
    numbers = [number for number, problem in enumerate(problems, start=1) if problem == first]
    named = ", ".join(map(str, numbers[:NUM_NAMED_ROWS]))
    more = ", ..." if len(numbers) > NUM_NAMED_ROWS else ""
    raise DataError.broken_rule(
        path_key,
        f"hold {column.kind} in column {column.name!r} of every row",
        f"{first} in row {named}{more} ({len(numbers)} of {len(rows)} rows) of {origin}",
        "Mend or remove these rows; they are counted from 1.",
    )


def _problem(column: Column, value: object) -> str | None:
    """Return what is wrong with the value, None where nothing is."""
    if value is None:
        return None if column.kind is Kind.FLAGS else "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    expected, is_valid = _RULES[column.kind]
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        return f"a value of type {type(value).__name__}"
    return None if is_valid(value) else _WRONG_VALUE[column.kind]


def _is_text(value: object) -> bool:
    return bool(str(value).strip())


def _is_dialogue(value: object) -> bool:
    text = str(value)
    return HUMAN in text and ASSISTANT in text


def _is_flags(value: object) -> bool:
    return isinstance(value, dict) and all(flag in (True, False, None) for flag in value.values())


_RULES: Mapping[Kind, tuple[type, Callable[[object], bool]]] = {
    Kind.TEXT: (str, _is_text),
    Kind.DIALOGUE: (str, _is_dialogue),
    Kind.FLAG: (bool, lambda _: True),
    Kind.CHOICE: (int, lambda value: value in (0, 1)),
    Kind.FLAGS: (dict, _is_flags),
}
_WRONG_VALUE: Mapping[Kind, str] = {
    Kind.TEXT: "an empty text",
    Kind.DIALOGUE: "a text without these marks",
    Kind.FLAG: "another value",
    Kind.CHOICE: "another number",
    Kind.FLAGS: "other values",
}
