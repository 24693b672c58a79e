"""Tables of notes are what their records give."""

from pathlib import Path

import pytest

from rpa_ray.paper.note import TABLES, with_tables

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NOTES = sorted(BENCHMARKS.glob("*.md"))


@pytest.mark.parametrize("note", NOTES, ids=[note.stem for note in NOTES])
def test_the_tables_of_a_note_are_what_its_records_give(note: Path) -> None:
    text = note.read_text(encoding="utf-8")
    assert with_tables(text, BENCHMARKS) == text


def test_the_table_of_readme_is_what_its_evidence_gives() -> None:
    text = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    assert "<!-- table: truth benchmarks/quickstart" in text
    assert with_tables(text, BENCHMARKS.parent) == text


def test_most_notes_of_campaigns_have_such_tables() -> None:
    marked = [note.stem for note in NOTES if "<!-- table: " in note.read_text(encoding="utf-8")]
    assert len(marked) >= 8


def test_a_number_that_somebody_changed_is_written_anew() -> None:
    begin, end = "<!-- table: truth table6 -->", "<!-- end of table -->"
    written = with_tables(f"a\n{begin}\n| 0.99 |\n{end}\nb\n", BENCHMARKS)
    assert written.startswith(f"a\n{begin}\n")
    assert written.endswith(f"\n{end}\nb\n")
    assert "| Complies (n 100) |" in written
    assert "| 0.99 |\n" not in written.split(end)[0].splitlines()[1]
    assert with_tables(written, BENCHMARKS) == written


def test_an_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"table must be one of {', '.join(TABLES)}, got nothing"):
        with_tables("<!-- table: nothing table6 -->\n<!-- end of table -->", BENCHMARKS)
