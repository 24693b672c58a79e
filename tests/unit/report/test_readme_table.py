"""README's table of the quickstart, computed from the evidence by nothing of this package."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[3]
EVIDENCE = ROOT / "benchmarks" / "quickstart" / "float32"
NUM_SEEDS = 5
ROWS = {
    "untouched base": ("base", "none", "none"),
    "untouched chat": ("chat", "none", "none"),
    "undefended": ("chat", "ppo", "none"),
    "refusal_loss": ("chat", "ppo", "refusal_loss"),
    "freeze (control), not moved": ("chat", "ppo", "freeze"),
}
Answer = dict[str, Any]
NUMBERS: dict[str, tuple[str, Callable[[Answer], float]]] = {
    "Harm (n 1,448)": ("sampled", lambda a: a["harm"]),
    "Harm, greedy (n 362)": ("greedy", lambda a: a["harm"]),
    "Complies (n 1,448)": ("sampled", lambda a: a["complies"]),
    "Complies, greedy (n 362)": ("greedy", lambda a: a["complies"]),
    "Valid (n 362)": ("greedy", lambda a: a["is_fluent"]),
    "Judge (n 1,448)": ("sampled", lambda a: a["judge"]),
    "Judge gap (n 1,448)": ("sampled", lambda a: a["judge"] - a["complies"]),
    "Harmless answered (n 178)": ("harmless", lambda a: a["complies"]),
}


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str, str], list[Answer]]:
    table = pq.read_table(EVIDENCE / "answers.parquet")
    cells = json.loads(table.schema.metadata[b"cells"])
    found: dict[tuple[str, str, str], list[Answer]] = {}
    for row in table.to_pylist():
        cell = cells[row["cell"]]
        if cell["run"] is None:  # the start of a run, beside the same model as a cell
            continue
        key = (cell["model"], cell["attack"], cell["defence"])
        found.setdefault(key, []).append(row)
    return found


@pytest.fixture(scope="module")
def printed() -> dict[str, dict[str, str]]:
    """Return the texts of README's table by the name of the row and the heading."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    head = next(
        i for i, line in enumerate(lines) if line.startswith("| Attack | Defence | Seeds |")
    )
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines[head : head + 7]]
    return {row[1]: dict(zip(header, row, strict=True)) for row in rows}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("heading", NUMBERS)
def test_a_number_is_the_mean_of_the_committed_answers(
    row: str,
    heading: str,
    answers: dict[tuple[str, str, str], list[Answer]],
    printed: dict[str, dict[str, str]],
) -> None:
    decoding, value = NUMBERS[heading]
    values = [float(value(a)) for a in answers[ROWS[row]] if a["decoding"] == decoding]
    text = printed[row][heading].split()[0].rstrip("!*")
    assert float(text) == pytest.approx(fmean(values), abs=0.0051)
    # Every seed has as many answers, so that the mean of all is that over seeds.
    assert printed[row]["Seeds"] == str(NUM_SEEDS)
    assert heading.endswith(f"(n {len(values) // NUM_SEEDS:,})") and len(values) % NUM_SEEDS == 0


def test_the_table_has_these_rows_and_no_others(printed: dict[str, dict[str, str]]) -> None:
    assert list(printed) == list(ROWS)


def test_curves_of_harm_end_where_the_attack_does() -> None:
    rows = pq.read_table(EVIDENCE / "looks.parquet").to_pylist()
    cells = json.loads(pq.read_schema(EVIDENCE / "looks.parquet").metadata[b"cells"])
    attacked = [i for i, cell in enumerate(cells) if cell["attack"] == "ppo"]
    assert {row["cell"] for row in rows} == set(attacked)
    for cell in attacked:
        samples = [row["samples"] for row in rows if row["cell"] == cell]
        assert (samples[0], samples[-1], len(samples)) == (0.0, 1000.0, 11)
        assert samples == sorted(samples)
