"""How rows that were read become rows of a schema, and how one that does not fit is named."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rpa_ray.config.errors import nearest, short
from rpa_ray.data.errors import DataError, Problem
from rpa_ray.data.messages import PROMPT, with_texts
from rpa_ray.data.schema import ASSISTANT, HUMAN, Column, Kind, Row, RowRule, Schema

logger = logging.getLogger(__name__)

NUM_NAMED_ROWS = 10
"""An error names at most so many rows."""

_Check: TypeAlias = Callable[[Row], Problem | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where rows come from, in the words of an error."""

    text: str
    """The file, or the Hub id and its split."""
    path_key: str
    """The config path that names the source."""
    columns: Collection[str] = ()
    """Columns there beyond those that the rows were read with."""
    names: Mapping[str, str] = field(default_factory=dict)
    """From our name of a column to that of the source, where they differ."""
    max_broken_frac: float = 0.0
    """Share of rows that may break a rule; they are left out, and their number is logged."""
    formats: Mapping[str, Schema] = field(default_factory=dict)
    """What else the rows may be of, by ``data.name``."""

    def name_of(self, column: str) -> str:
        """Return the source's name of one of our columns."""
        return self.names.get(column, column)


def conform(schema: Schema, rows: Sequence[Row], origin: Origin) -> list[Row]:
    """Return the rows with the columns of the schema, under its names and no others.

    Messages become texts; 0 and 1, or the words true and false, become flags where every value of
    the column is one of the two; the texts 0 and 1 become choices.

    Args:
        schema: What must hold.
        rows: The rows in the order of the source; an error counts them from 1.
        origin: What errors call the source and its columns.

    Raises:
        DataError: No rows, a column that is not there, or more rows with values of another kind
            than the origin allows.
    """
    if not rows:
        raise DataError.broken_rule(
            origin.path_key,
            "hold at least one row",
            f"none in {origin.text}",
            "Check how it was written.",
        )
    named = [(column.name, origin.name_of(column.name)) for column in schema.columns]
    ours = [
        with_texts({own: row[theirs] for own, theirs in named if theirs in row}, schema.columns)
        for row in rows
    ]
    present = {column for row in rows for column in row} | set(origin.columns)
    if PROMPT not in origin.names and any(PROMPT in row for row in ours):
        present.add(PROMPT)  # perhaps from the messages of the answers
    _require_columns(schema, present, origin)
    columns = [column for column in schema.columns if origin.name_of(column.name) in present]
    for column in columns:
        if column.kind is Kind.FLAG:
            _write_flags(ours, column.name)
        elif column.kind is Kind.CHOICE:
            _write_choices(ours, column.name)
    broken, first_error = _broken_rows(schema, columns, ours, origin)
    if first_error is None:
        return ours
    if len(broken) > origin.max_broken_frac * len(rows):
        raise first_error
    logger.warning(
        "left out %d of %d rows of %s: %s", len(broken), len(rows), origin.text, first_error
    )
    return [row for number, row in enumerate(ours, start=1) if number not in broken]


def _require_columns(schema: Schema, present: set[str], origin: Origin) -> None:
    for own, theirs in origin.names.items():
        if theirs not in present:
            raise DataError.broken_rule(
                f"data.columns.{own}",
                f"name a column of {origin.text} (its columns: {short(sorted(present))})",
                repr(theirs),
                nearest(theirs, present),
            )
    required = [origin.name_of(name) for name in schema.required]
    missing = [name for name in required if name not in present]
    if missing:
        mapped = ", say in data.columns which they are" if origin.path_key == "data.path" else ""
        remedy = f"Rename or add them{mapped}, or choose the data set whose format this is."
        others = [name for name, other in origin.formats.items() if {*other.required} <= present]
        if len(others) == 1:
            remedy = f"These are the columns of {others[0]}: set data.name to that."
        raise DataError.broken_rule(
            origin.path_key,
            f"have the columns {required}",
            f"{origin.text} without {missing} (its columns: {short(sorted(present))})",
            remedy,
            fitting={"data.name": others[0]} if len(others) == 1 else {},
        )


def _broken_rows(
    schema: Schema, columns: Sequence[Column], rows: Sequence[Row], origin: Origin
) -> tuple[set[int], DataError | None]:
    """Return the numbers of the rows that break a rule, and the error for the first rule broken."""
    names = {column.name: origin.name_of(column.name) for column in schema.columns}
    checks = [
        (f"hold {column.kind} in column {names[column.name]!r} of every row", _value_check(column))
        for column in columns
    ]
    checks += [(rule.rule.format(**names), _rule_check(rule)) for rule in schema.rules]
    broken: set[int] = set()
    first_error: DataError | None = None
    for rule, problem_of in checks:
        problems = {
            number: problem
            for number, row in enumerate(rows, start=1)
            if number not in broken and (problem := problem_of(row)) is not None
        }
        if problems and first_error is None:
            first_error = _error(rule, problems, len(rows), origin)
        broken |= problems.keys()
    return broken, first_error


def _value_check(column: Column) -> _Check:
    return lambda row: _problem(column, row.get(column.name))


def _rule_check(rule: RowRule) -> _Check:
    return lambda row: None if rule.holds(row) else Problem(rule.found)


def _error(rule: str, problems: Mapping[int, Problem], num_rows: int, origin: Origin) -> DataError:
    first = next(iter(problems.values()))
    numbers = [number for number, problem in problems.items() if problem == first]
    named = ", ".join(map(str, numbers[:NUM_NAMED_ROWS]))
    more = ", ..." if len(numbers) > NUM_NAMED_ROWS else ""
    return DataError.broken_rule(
        origin.path_key,
        rule,
        f"{first.found} in row {named}{more} ({len(numbers)} of {num_rows} rows) of {origin.text}",
        f"{first.remedy} Mend or remove these rows; they are counted from 1.".lstrip(),
    )


def _write_flags(rows: Sequence[Row], column: str) -> None:
    """Write a column of 0 and 1, or of words for them, as flags.

    A value that is not of the convention of most others becomes a :class:`Problem`.
    """
    found = [value for row in rows if (value := row.get(column)) is not None]
    convention = Counter(map(_convention, found)).most_common(1)[0][0] if found else None
    if convention is None:
        return
    for row in rows:
        if (value := row.get(column)) is not None:
            is_one = _convention(value) == convention
            problem = Problem(f"another value among {convention}")
            row[column] = _said(value) in ("1", "1.0", "true") if is_one else problem


def _write_choices(rows: Sequence[Row], column: str) -> None:
    """Write texts 0 and 1 as numbers: a CSV file has a column of texts where one row is none."""
    for row in rows:
        if (value := row.get(column)) in ("0", "1"):
            row[column] = int(str(value))


def _convention(value: object) -> str | None:
    """Return how a column writes flags that has this value; None where it has them, or none."""
    known = _CONVENTIONS.get(type(value), {})
    return known.get(_said(value)) if known else None


def _said(value: object) -> str:
    return str(value).strip().lower()


def _problem(column: Column, value: object) -> Problem | None:
    """Return what is wrong with the value, None where nothing is."""
    if isinstance(value, Problem):
        return value
    if value is None:
        return None if column.kind in _MAY_BE_NULL else Problem("null")
    if isinstance(value, float) and math.isnan(value):
        return Problem("NaN")
    expected, is_valid = _RULES[column.kind]
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        return Problem(f"a value of type {type(value).__name__}")
    if not all(map(_can_be_encoded, value if isinstance(value, dict) else [value])):
        return Problem("half of a character (a lone surrogate)")
    return None if is_valid(value) else Problem(_WRONG_VALUE[column.kind])


def _can_be_encoded(value: object) -> bool:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


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
    Kind.LABEL: (str, lambda _: True),
    Kind.FLAG: (bool, lambda _: True),
    Kind.CHOICE: (int, lambda value: value in (0, 1)),
    Kind.FLAGS: (dict, _is_flags),
}
_WRONG_VALUE: Mapping[Kind, str] = {
    Kind.TEXT: "an empty text",
    Kind.DIALOGUE: "a text without these marks",
    Kind.LABEL: "another value",
    Kind.FLAG: "another value",
    Kind.CHOICE: "another number",
    Kind.FLAGS: "other values",
}
_CONVENTIONS: Mapping[type, Mapping[str, str]] = {
    int: dict.fromkeys(("0", "1"), "0 and 1"),
    float: dict.fromkeys(("0.0", "1.0"), "0.0 and 1.0"),  # of a table with gaps
    str: dict.fromkeys(("false", "true"), "words true and false")
    | dict.fromkeys(("0", "1"), "texts 0 and 1"),
}
"""By type and value: the other ways in which files write flags, in the words of an error."""
_MAY_BE_NULL = {Kind.LABEL, Kind.FLAGS}
