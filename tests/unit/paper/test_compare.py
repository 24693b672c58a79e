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
RECORDED = BENCHMARKS / "table3" / "20261121"
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


def test_truth_stands_before_the_judge_and_marks_it() -> None:
    lines = printed(RECORDED)
    header = lines[0].split(" | ")
    assert header.index("Complies") < header.index("Valid") < header.index("Judge")
    row = next(line for line in lines if line.startswith("| beavertails | ppo | low_lr |"))
    assert "| 0.14 [0.08, 0.22] | 0.00 [0.00, 0.04] | 0.40 | 0.95*! | 0.81 |" in row


def test_of_two_seeds_mean_interval_smallest_and_largest_are_told(second_seed: SecondSeed) -> None:
    def change(row: dict[str, Any]) -> None:
        row["metrics"]["p_harm_oracle_sampled"] |= {"mean": 0.4, "ci_low": 0.3, "ci_high": 0.5}

    lines = printed(RECORDED, second_seed(change))
    row = next(line for line in lines if line.startswith("| beavertails | sft | none |"))
    greedy = "0.99 [0.95, 1.00] (0.99 to 0.99)"
    assert f"| 0.68 | 2 of 2 | 0.62 [0.53, 0.71] (0.40 to 0.85) | {greedy} |" in row


def test_a_seed_that_failed_is_counted_and_left_out(second_seed: SecondSeed) -> None:
    lines = printed(RECORDED, second_seed(lambda row: row.update(status="sampling_failed")))
    row = next(line for line in lines if line.startswith("| beavertails | sft | none |"))
    assert "| 0.68 | 1 of 2 | 0.85 [0.76, 0.92] |" in row


def test_a_folder_named_twice_is_refused() -> None:
    done = run(RECORDED, RECORDED)
    assert done.returncode == 2 and "must differ between folders, got 0" in done.stderr


def test_the_null_model_stands_beside_every_correlation_over_all_rows() -> None:
    told = [line for line in printed(RECORDED) if line.startswith("- ")]
    assert [line.partition(":")[0] for line in told] == [
        "- Complies",
        "- Complies, greedy",
        "- Judge",
    ]
    assert all("over 30 rows" in line and "the null model's 0.59" in line for line in told)
    assert all("not shown to be better than" in line for line in told)


def test_defences_that_are_all_perfect_are_no_better_than_the_null(tmp_path: Path) -> None:
    rows = json.loads((RECORDED / "summary.json").read_text())
    for row in rows:
        if row["defence"] != "none":
            for estimate in row["metrics"].values():
                estimate["mean"] = 0.0
    (tmp_path / "summary.json").write_text(json.dumps(rows))
    (line,) = [line for line in printed(tmp_path) if line.startswith("- Complies:")]
    assert "not shown to be better than the null model's" in line
    assert "difference +0.00" in line or "difference -0.0" in line


def test_rows_of_other_samples_and_of_other_shares_are_those_of_tables_6_and_8(
    tmp_path: Path,
) -> None:
    known = {(1.0, 1000): "0.08", (1.0, 2504): "0.08", (0.25, 1000): "0.20", (0.25, 2504): "-"}
    (found,) = (
        row
        for row in json.loads((RECORDED / "summary.json").read_text())
        if (row["data"], row["attack"], row["defence"]) == ("beavertails", "ppo", "lisa")
    )
    rows = [
        found | {"rho": rho, "num_samples": num, "params": {}, "run": f"run-{rho}-{num}"}
        for rho, num in known
    ]
    base = rows[0] | {"model": "base", "run": "base"}
    (tmp_path / "summary.json").write_text(json.dumps([*rows, base]))
    lines = printed(tmp_path)
    assert lines[0].startswith("| Data | Attack | Defence | Model | Samples | rho | Paper |")
    told = {tuple(line.split(" | ")[3:6]): line.split(" | ")[6] for line in lines[2:7]}
    expected = {("chat", str(num), f"{rho:g}"): told for (rho, num), told in known.items()}
    assert told == expected | {("base", "1000", "1"): "-"}
