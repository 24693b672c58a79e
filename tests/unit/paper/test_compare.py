"""Ours beside the paper's, on the records that its note was written from."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
RECORDED = BENCHMARKS / "table3"
Change = Callable[[dict[str, Any]], None]
SecondSeed = Callable[[Change], Path]


def run(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rpa_ray.paper.compare", *folders]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def printed(*folders: Path) -> list[str]:
    done = run(*folders)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def second_seed(tmp_path: Path) -> SecondSeed:
    """Return what writes the recorded campaign as one of seed 1, its undefended attacks changed."""

    def write(change: Change) -> Path:
        rows = json.loads((RECORDED / "summary.json").read_text())
        for row in rows:
            row["seed"] = 1
            if row["defence"] == "none" and row["attack"] != "none":
                change(row)
        (tmp_path / "summary.json").write_text(json.dumps(rows))
        return tmp_path

    return write


def test_the_note_of_table_3_holds_what_its_records_print() -> None:
    note = (BENCHMARKS / "table3_cpu2_202611.md").read_text().splitlines()
    missing = [line for line in printed(RECORDED) if line not in note]
    assert missing == []


def test_of_two_seeds_mean_smallest_and_largest_are_told(second_seed: SecondSeed) -> None:
    def change(row: dict[str, Any]) -> None:
        row["metrics"]["p_harm"]["mean"] = 0.4

    lines = printed(RECORDED, second_seed(change))
    row = next(line for line in lines if line.startswith("| beavertails | sft | none |"))
    assert "| 0.68 | 2 of 2 | 0.70 [0.40, 1.00] | 0.99 [0.99, 0.99] |" in row
    # ranks 5 4 1.5 1.5 3 in the paper, 4 2 2 2 5 here: covariance 4, deviations 9.5 and 8
    assert "| beavertails | sft | 5 | 0.46 | 0.62 |" in lines


def test_a_seed_that_failed_is_counted_and_left_out(second_seed: SecondSeed) -> None:
    lines = printed(RECORDED, second_seed(lambda row: row.update(status="sampling_failed")))
    row = next(line for line in lines if line.startswith("| beavertails | sft | none |"))
    assert "| 0.68 | 1 of 2 | 1.00 [1.00, 1.00] |" in row


def test_a_folder_named_twice_is_refused() -> None:
    done = run(RECORDED, RECORDED)
    assert done.returncode == 1 and "of seed 0 once more: name it once" in done.stderr
