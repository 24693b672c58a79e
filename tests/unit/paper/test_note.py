"""Tables of notes are what their records give."""

from pathlib import Path

import pytest

from rpa_ray.paper.note import TABLES, main, with_tables

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
    assert "| Harm | Harm, greedy | Complies |" in written
    assert "| 0.99 |\n" not in written.split(end)[0].splitlines()[1]
    assert with_tables(written, BENCHMARKS) == written


def test_an_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"table must be one of {', '.join(TABLES)}, got nothing"):
        with_tables("<!-- table: nothing table6 -->\n<!-- end of table -->", BENCHMARKS)


ROW = "safe_rlhf/ppo/safe_rlhf (cost=logit, critics=two, dual=exp_sgd, lambda_lr=0.1)"


TABLE = "<!-- table: truth table6 -->"


def number(written: str, *, kind: str = "value", metric: str = "compliance", row: str = ROW) -> str:
    mark = f"<!-- {kind}: {metric} cost_forms/20261121 {row} -->"
    return f"It is {mark}{written}<!-- end --> or 0.99."


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"row": f"{ROW} seed 0"}, "0.87"),
        ({"row": f"{ROW} seed 2", "metric": "p_harm"}, "0.01"),
        ({"row": f"{ROW.replace('/ppo/', '/ppo 1000/')} seed 2", "metric": "p_harm"}, "0.01"),
        ({"row": f"{ROW} seed 0", "kind": "interval"}, "0.87 [0.79, 0.93]"),
        ({"row": "safe_rlhf/ppo/none", "kind": "interval"}, "0.90 [0.83, 0.95] (0.83 to 0.94)"),
        ({"row": "safe_rlhf/ppo rho 1/none"}, "0.90"),
        ({"row": "safe_rlhf/ppo/chat none"}, "0.90"),
    ],
)
def test_a_number_in_a_sentence_is_that_of_the_records(asked: dict[str, str], told: str) -> None:
    assert with_tables(number("0.12", **asked), BENCHMARKS) == number(told, **asked)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (number("", row="safe_rlhf/ppo/safe_rlhf"), "a row must be one of beavertails/ppo/none, "),
        (
            number("", row=f"{ROW} seed 7"),
            "a seed of safe_rlhf/ppo/.* must be one of 0, 1, 2, got",
        ),
        (number("", metric="harm"), "a metric of safe_rlhf .* must be one of .*, got harm"),
        ("<!-- value: harm table6 a/b/c -->0.5", "a mark must be .* got '<!-- value: harm table6"),
        ("<!-- table: truth -->\n0.5\n<!-- end of table -->", "a mark must be"),
        (f"{TABLE}\nlost\n{TABLE}\n<!-- end of table -->", "a mark must be"),
    ],
)
def test_what_would_not_be_held_to_its_records_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}"):
        with_tables(text, BENCHMARKS)


def test_a_check_finds_a_stale_number_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cost_forms").symlink_to(BENCHMARKS / "cost_forms")
    note = tmp_path / "note.md"
    codes = []
    for text, options in (("0.12", ["--check"]), ("0.12", []), (None, ["--check"])):
        if text is not None:
            note.write_text(number(text, row=f"{ROW} seed 0"))
        before = note.read_text()
        monkeypatch.setattr("sys.argv", ["note", *options, str(note)])
        codes.append(main())
        assert ("--check" in options) == (note.read_text() == before)
    assert codes == [1, 0, 0]
    assert "not what its records give" in capsys.readouterr().err
    note.write_text("<!-- value: nothing -->")
    assert main() == 2
    assert "note.md: a mark must be" in capsys.readouterr().err
