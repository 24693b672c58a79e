"""Tables beside the main one: what they hold, and the same table as Markdown, HTML and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rpa_ray.report.escape import escape_markdown, spreadsheet_text
from rpa_ray.report.read.definitions import MetricText
from rpa_ray.report.read.groups import Cell
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.main import (
    MISSING,
    format_spread,
    format_value,
    markdown_table,
)

Entry = str | float | CellValue | None
"""One entry of a table; None is printed as missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a side table."""

    heading: str
    name: str
    """Its name in the CSV file."""
    decimals: int | None = None
    """Digits after the point; None for a column of text."""
    has_interval: bool = False
    """Whether its entries are metrics of cells: the CSV file then has both ends as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SideTable:
    """A table with what it says; it is left out everywhere when it has no rows."""

    name: str
    """Stem of its CSV file."""
    title: str
    intro: str
    """What a row is and how to read it, in plain sentences."""
    columns: Sequence[Column]
    """Text first, then numbers."""
    rows: Sequence[Sequence[Entry]]
    definitions: Sequence[MetricText] = ()
    """Metrics that stand in no other table."""


def text_column(heading: str, name: str) -> Column:
    """Return a column of words."""
    return Column(heading=heading, name=name)


def metric_column(metric: MetricText) -> Column:
    """Return a column of a metric's means with their intervals."""
    return Column(
        heading=metric.heading, name=metric.name, decimals=metric.decimals, has_interval=True
    )


def label_with_failure(cell: Cell) -> str:
    """Return the name of a row, and what failed of it."""
    return f"{cell.label}: {cell.failure}" if cell.failure else cell.label


def side_table_markdown(table: SideTable) -> str:
    """Return heading, explanation and table; "" without rows."""
    if not table.rows:
        return ""
    texts = [[" ".join(filter(None, parts)) for parts in row] for row in _texts(table)]
    shown = markdown_table(
        [column.heading for column in table.columns],
        texts,
        num_text_columns=sum(column.decimals is None for column in table.columns),
    )
    return f"## {escape_markdown(table.title)}\n\n{escape_markdown(table.intro)}\n\n{shown}"


def side_table_html(table: SideTable, *, figures: str = "") -> str:
    """Return heading, explanation, the charts that belong to it, and the table; "" without rows."""
    if not table.rows:
        return ""
    kinds = [' class="words"' if column.decimals is None else "" for column in table.columns]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(column.heading)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{escape(told)}{f'<small>{spread}</small>' if spread else ''}</td>"
            for (told, spread), kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in _texts(table)
    )
    return (
        f'<h2>{escape(table.title)}</h2>\n<p class="soft">{escape(table.intro)}</p>\n{figures}'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'</div>\n<p class="notes">Also in {table.name}.csv.</p>'
    )


def side_table_csv(table: SideTable) -> str:
    """Return the table with all digits; a metric has three columns, `name`, `_low` and `_high`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names: list[str] = []
    for column in table.columns:
        names += [column.name + suffix for suffix in ("", "_low", "_high")[: _width(column)]]
    writer.writerow(map(spreadsheet_text, names))
    for row in table.rows:
        fields: list[object] = []
        for column, entry in zip(table.columns, row, strict=True):
            values = (
                [_blank(number) for number in _ends(entry)]
                if isinstance(entry, CellValue)
                else ["" if entry is None else entry]
            )
            fields += values + [""] * (_width(column) - len(values))
        writer.writerow(map(spreadsheet_text, fields))
    return file.getvalue()


def _texts(table: SideTable) -> list[list[tuple[str, str]]]:
    """Return each entry as text and the text of its interval, which may be empty."""
    return [
        [_entry_text(column, entry) for column, entry in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]


def _entry_text(column: Column, entry: Entry) -> tuple[str, str]:
    if entry is None:
        return MISSING, ""
    if isinstance(entry, str):
        return entry or MISSING, ""
    decimals = column.decimals or 0
    if isinstance(entry, CellValue):
        return format_value(entry, decimals), format_spread(entry, decimals)
    return f"{entry:,.{decimals}f}", ""


def _width(column: Column) -> int:
    return 3 if column.has_interval else 1


def _ends(value: CellValue) -> tuple[float, float, float]:
    """Return mean and ends; of a censored value only its lower end is known."""
    return (math.nan if value.is_censored else value.mean), value.low, value.high


def _blank(number: float) -> object:
    return number if math.isfinite(number) else ""
