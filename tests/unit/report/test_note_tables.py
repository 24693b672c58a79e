"""Tables of notes that have evidence, computed from it by nothing of this package.

Every number of every `truth` table, cell by cell: a mean over answers, then over seeds.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
BLOCK = re.compile(r"<!-- table: truth ([\w./-]+) -->\n(.*?)<!-- end of table -->", re.DOTALL)
Answer = dict[str, Any]
Cell = dict[str, Any]
NUMBERS: dict[str, tuple[str, Callable[[Answer], float | None]]] = {
    "Harm": ("sampled", lambda a: a["harm"]),
    "Harm, greedy": ("greedy", lambda a: a["harm"]),
    "Complies": ("sampled", lambda a: a["complies"]),
    "Complies, greedy": ("greedy", lambda a: a["complies"]),
    "Valid": ("greedy", lambda a: a["is_fluent"]),
    "Judge": ("sampled", lambda a: a["judge"]),
    "Judge gap": ("sampled", lambda a: a["judge"] - a["complies"]),
    "Harmless answered": ("harmless", lambda a: a["complies"]),
    "KL": ("sampled", lambda a: a["kl"]),
}
TABLES = [
    (note.name, found[1])
    for note in sorted(BENCHMARKS.glob("*.md"))
    for found in BLOCK.finditer(note.read_text(encoding="utf-8"))
    if (BENCHMARKS / found[1] / "answers.parquet").is_file()
]


def rows_of(note: str, folder: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table by heading, without the numbers of answers in the headings."""
    text = (BENCHMARKS / note).read_text(encoding="utf-8")
    (body,) = [found[2] for found in BLOCK.finditer(text) if found[1] == folder]
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    heads = [head.partition(" (n ")[0] for head in lines[0]]
    for line in lines[2:]:
        yield dict(zip(heads, line, strict=True))


def is_of(cell: Cell, row: dict[str, str]) -> bool:
    """Return whether a row is about a cell, by what its texts say of settings."""
    words, _, settings = row["Defence"].replace("\\", "").partition(" (")
    name = words.split(",")[0]
    if name.startswith("untouched") or words.endswith("not attacked"):
        model, _, name = name.removeprefix("untouched ").partition(" with ")
        if model != cell["model"].rpartition("/")[2]:
            return False
        name = name or "none"
    texts = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in cell["params"].items()}
    named = texts | {key.rpartition(".")[2]: text for key, text in texts.items()}
    told = dict(re.findall(r"([\w.]+)=(\[[^]]*\]|[^,)]+)", settings))
    return (
        cell["attack"] == row["Attack"].lower()
        and cell["defence"] == ("none" if name == "undefended" else name)
        and row.get("Data", cell["data"]) == cell["data"]
        and row.get("Samples", "-") in ("-", f"{cell['num_samples'] or 0:,}")
        and row.get("Model", cell["model"]) in ("-", cell["model"])
        and row.get("rho", "-") in ("-", f"{cell['rho'] or 0:g}")
        and told.items() <= named.items()
    )


def test_there_are_notes_with_evidence() -> None:
    assert len({note for note, _ in TABLES}) >= 1


@pytest.mark.parametrize(("note", "folder"), TABLES)
def test_every_number_is_a_mean_of_the_committed_answers(note: str, folder: str) -> None:
    table = pq.read_table(BENCHMARKS / folder / "answers.parquet")
    cells: list[Cell] = json.loads(table.schema.metadata[b"cells"])
    answers: dict[int, list[Answer]] = {}
    for answer in table.to_pylist():
        answers.setdefault(answer["cell"], []).append(answer)
    num_seen = 0
    for row in rows_of(note, folder):
        found = [i for i, cell in enumerate(cells) if is_of(cell, row) and i in answers]
        assert found, row
        # The model before, where it is a cell, stands beside what runs measured of it.
        found = [i for i in found if cells[i]["run"]] or found
        assert len({cells[i]["seed"] for i in found}) == len(found), row
        for heading, (decoding, value) in NUMBERS.items():
            if row.get(heading, "-") == "-":
                continue
            means = [
                fmean(
                    float(number)
                    for answer in answers[i]
                    if answer["decoding"] == decoding and (number := value(answer)) is not None
                )
                for i in found
            ]
            text = re.match(r"-?[\d.]+", row[heading])
            assert text is not None, (heading, row)
            decimals = len(text[0].partition(".")[2])
            assert float(text[0]) == pytest.approx(fmean(means), abs=0.51 * 10**-decimals), row
            num_seen += 1
    assert num_seen >= 10
