import csv
import io

from rpa_ray.report.read.definitions import METRIC_BY_NAME
from rpa_ray.report.read.records import Estimate
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.side import (
    Column,
    SideTable,
    metric_column,
    side_table_csv,
    side_table_html,
    side_table_markdown,
    text_column,
)

SEED = Estimate(mean=0.8125, n=100, ci_low=0.75, ci_high=0.875)
HARM = CellValue(mean=0.8125, low=0.75, high=0.875, by_seed=(SEED,))
UNBOUNDED = CellValue(mean=0.5, low=float("nan"), high=float("nan"), by_seed=(SEED,))


def table(*rows: tuple[str, float | None, CellValue | None]) -> SideTable:
    columns = (
        text_column("Name", "name"),
        Column(heading="Count", name="num", decimals=0),
        metric_column(METRIC_BY_NAME["p_harm"]),
    )
    return SideTable(name="some", title="Some", intro="Intro.", columns=columns, rows=rows)


def test_markdown_rounds_and_shows_intervals_and_what_is_missing() -> None:
    lines = side_table_markdown(table(("a|b", 1200, HARM), ("c", None, None))).splitlines()
    assert lines[:3] == ["## Some", "", "Intro."]
    assert lines[4:] == [
        "| Name | Count | Judge, greedy |",
        "| --- | --: | --: |",
        "| a\\|b | 1,200 | 0.81 [0.75, 0.88] |",
        "| c | - | - |",
    ]


def test_csv_keeps_all_digits_and_leaves_the_unknown_empty() -> None:
    rows = list(
        csv.DictReader(io.StringIO(side_table_csv(table(("a", 3, HARM), ("b", None, None)))))
    )
    assert rows[0] == {
        "name": "a",
        "num": "3",
        "p_harm": "0.8125",
        "p_harm_low": "0.75",
        "p_harm_high": "0.875",
    }
    assert set(rows[1].values()) == {"b", ""}


def test_an_interval_that_is_not_finite_is_left_empty() -> None:
    (row,) = csv.reader(io.StringIO(side_table_csv(table(("a", 1, UNBOUNDED))).partition("\n")[2]))
    assert row == ["a", "1", "0.5", "", ""]


def test_html_escapes_names() -> None:
    page = side_table_html(table(("<b>", 1, HARM)))
    assert '<td class="words">&lt;b&gt;</td>' in page
    assert "<td>0.81<small>[0.75, 0.88]</small></td>" in page


def test_a_table_without_rows_is_left_out() -> None:
    assert (side_table_markdown(table()), side_table_html(table(), figures="<svg/>")) == ("", "")
