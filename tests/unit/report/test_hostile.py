"""Reports show the texts of others as text, in every format, and are built as with plain names."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import HARMLESS, HOSTILE, every_hostile_text, runs_named
from markdown_it import MarkdownIt

from rpa_ray.paper.note import with_tables
from rpa_ray.report import write_report
from rpa_ray.report.escape import escape_markdown, fenced
from rpa_ray.report.tables.side import SideTable, side_table_csv, side_table_markdown, text_column
from rpa_ray.terminal import printable

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
FORMS = ("{}", "- **bold {}**: x", "| {} | x |\n| --- | --: |\n| {} | y |")
NOTE = "# Note\n\n<!-- table: results runs -->\n<!-- end of table -->\n\nThe end.\n"


def structure(markdown: str) -> list[str]:
    """Return what a Markdown text is built of, without its words."""
    built = []
    for token in PARSER.parse(markdown):
        inner = [child.type for child in token.children or () if child.type != "text"]
        built += [f"{token.type} {token.tag} {token.nesting}", *inner]
    return built


def shown_by(markdown: str) -> str:
    """Return the words that a reader sees, without white space."""
    tokens = [inner for token in PARSER.parse(markdown) for inner in (token.children or [token])]
    return "".join("".join(token.content.split()) for token in tokens)


def words(text: str) -> str:
    """Return a text as it is to be shown, without white space."""
    return "".join(printable(" ".join(text.split())).split())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a report on runs whose names are a word."""
    folder = tmp_path_factory.mktemp("plain") / "runs"
    runs_named(folder, HARMLESS)
    write_report(folder)
    return folder


@pytest.fixture(scope="module", params=HOSTILE.values(), ids=HOSTILE.keys())
def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Return a hostile text, and the folder of a report on runs that are called so."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    runs_named(folder, request.param)
    write_report(folder)
    return request.param, folder


@every_hostile_text
@pytest.mark.parametrize("form", FORMS)
def test_escaped_text_is_only_text(text: str, form: str) -> None:
    marked = form.replace("{}", escape_markdown(f"x {text} x"))
    assert structure(marked) == structure(form.replace("{}", HARMLESS))
    assert words(text) in shown_by(marked)


@every_hostile_text
def test_a_block_of_code_ends_where_it_should(text: str) -> None:
    tokens = PARSER.parse(f"{fenced(text)}\n\nThe end.\n")
    assert [token.type for token in tokens] == [
        *("fence", "paragraph_open", "inline", "paragraph_close")
    ]
    assert tokens[0].content == f"{printable(text)}\n"


@pytest.mark.parametrize(
    "text",
    [
        *("0.93* [0.88, 0.98] (n 100)", "0.20*!", "0.05! [0.01, 0.10]", "about > 1,000 [900, -]"),
        *("Harm is 0.93* [0.88, 0.98] after it.", "{0.10, 0.20}", "(0.10 to 0.20)"),
        *("refusal_loss (learning_rate=1e-05)", "p_harm_sampled", "ppo/none", "a__b", "100 %!"),
    ],
)
def test_what_tables_write_themselves_is_left_as_it_is(text: str) -> None:
    assert escape_markdown(text) == text
    assert structure(text) == structure(HARMLESS)


def test_the_markdown_report_is_built_as_with_plain_names(
    report: tuple[str, Path], plain: Path
) -> None:
    text, folder = report
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert structure(written) == structure((plain / "report.md").read_text(encoding="utf-8"))
    # In the sentence above the table, the cells, the commands, and what measured.
    assert shown_by(written).count(words(text)) >= 4
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", written)


@every_hostile_text
def test_a_side_table_is_built_as_with_plain_names(text: str) -> None:
    def told(name: str) -> str:
        columns = [text_column(name, name), text_column("b", "b")]
        return side_table_markdown(
            SideTable(name="some", title=name, intro=name, columns=columns, rows=[(name, "x")])
        )

    assert structure(told(f"a{text}b")) == structure(told(HARMLESS))
    assert shown_by(told(f"a{text}b")).count(words(f"a{text}b")) == 4


def test_a_note_is_built_as_with_plain_names(report: tuple[str, Path], plain: Path) -> None:
    text, folder = report
    written = with_tables(NOTE, folder.parent)
    assert structure(written) == structure(with_tables(NOTE, plain.parent))
    assert words(text) in shown_by(written)
    assert with_tables(written, folder.parent) == written


def assert_no_formula(table: str) -> list[list[str]]:
    """Return the rows of a CSV file; hold that they are of one length and run nothing."""
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert {len(row) for row in rows} == {len(rows[0])}
    texts = [field for row in rows for field in row if not re.fullmatch(r"-?[\d.e-]+", field)]
    assert [text for text in texts if text.startswith(tuple("=+-@\t\r\n"))] == []
    return rows


def test_results_csv_runs_nothing_and_loses_nothing(report: tuple[str, Path], plain: Path) -> None:
    text, folder = report
    rows, as_plain = (
        assert_no_formula((one / "results.csv").read_bytes().decode()) for one in (folder, plain)
    )
    assert (len(rows), len(rows[0])) == (len(as_plain), len(as_plain[0]))
    held = printable(text)
    by_name = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert {row["model"].removeprefix("'") for row in by_name} == {held.removeprefix("'")}
    assert held in [name.removeprefix("'") for name in rows[0]]


@every_hostile_text
def test_a_side_table_runs_nothing_as_csv_and_loses_nothing(text: str) -> None:
    columns = [text_column(text, text), text_column("b", "b")]
    rows = [(text, "-0.5"), (f"-{text}", "x")]
    table = SideTable(name="some", title="a", intro="b", columns=columns, rows=rows)
    header, first, second = assert_no_formula(side_table_csv(table))
    assert [field.removeprefix("'") for field in (header[0], first[0])] == [printable(text)] * 2
    assert (first[1], second[1]) == ("-0.5", "x")


class Tags(HTMLParser):
    """Collects the tags of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.seen.append((f"/{tag}", []))


def test_the_page_is_built_as_with_plain_names(report: tuple[str, Path], plain: Path) -> None:
    _, folder = report
    pages = [(one / "report.html").read_text(encoding="utf-8") for one in (folder, plain)]
    assert Tags(pages[0]).seen == Tags(pages[1]).seen
