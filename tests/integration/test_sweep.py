"""A sweep on Ray Tune that is interrupted after its first trial and resumed: none is run twice."""

import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import rpa_ray
from observed_run import ObservedRun, command_line

CONFIGS = Path(__file__).parents[2] / "configs"
BETAS = [0.01, 0.1, 0.3, 1]
"""Two are released at first, and another whenever one is done: two more than the first have to be
done before the last begins, and the sweep is interrupted at its first result."""
SWEEP = f"""
kind: sweep
include:
  - {CONFIGS}/model/chat.yaml
  - {CONFIGS}/data/beavertails_embedded.yaml
  - {CONFIGS}/attack/dpo.yaml
  - {CONFIGS}/cluster/cpu.yaml
data: {{num_samples: 16}}
evaluation: {{num_prompts: 4, num_resamples: 100}}
cluster: {{parallel_cells: 1}}
sweep:
  attack.beta: {BETAS}
"""
POLL_S = 0.02

pytestmark = pytest.mark.timeout(1500)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interrupted:
    """A sweep after its interruption, before it is resumed."""

    output: Path
    finished: dict[Path, int]
    """When the results of the trials that were done had been written, in nanoseconds."""
    tune_trials: set[str]
    status: int
    left_over: list[Any]
    """Processes of it that did not end."""


def results_of(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("*/evaluation.json")}


def tune_trials(output: Path) -> set[str]:
    """Return the ids that Tune has given, over all records of it."""
    return {path.name.split("_")[1] for path in output.glob("tune/*/trial_*")}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "beta.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def interrupted(
    config: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Interrupted]:
    output = tmp_path_factory.mktemp("sweep") / "beta"
    # There is nothing to resume yet: it starts.
    command = command_line("sweep", str(config), "--resume", "--output", str(output))
    environment = {**os.environ, "RPA_RAY_CACHE": str(cache)}
    run = ObservedRun(command, output=output, environment=environment)
    try:
        while not results_of(output) and run.is_running():
            time.sleep(POLL_S)
    finally:
        run.end()
    assert results_of(output), run.log.read_text()[-3000:]
    yield Interrupted(
        output=output,
        finished=results_of(output),
        tune_trials=tune_trials(output),
        status=run.wait(),
        left_over=run.left_over(),
    )


@pytest.fixture(scope="module")
def resumed(interrupted: Interrupted, config: Path, cache: Path) -> Path:
    output = interrupted.output
    arguments = ("sweep", str(config), "--resume", "--output", str(output))
    result = rpa_ray(*arguments, cache=cache, cwd=output.parent)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    best = f"Of {len(BETAS)} trials the one with the largest harm: attack.beta"
    assert best in result.stdout
    return output


def test_an_interrupted_sweep_has_some_of_its_trials(interrupted: Interrupted) -> None:
    assert 1 <= len(interrupted.finished) < len(BETAS)
    assert not (interrupted.output / "summary.json").exists()


def test_a_terminated_sweep_ends_as_an_interrupted_one(interrupted: Interrupted) -> None:
    assert interrupted.status == 130
    assert interrupted.left_over == []


def test_every_trial_has_a_result_after_the_resumption(resumed: Path) -> None:
    summary = json.loads((resumed / "summary.json").read_text())
    assert [(r["params"], r["status"]) for r in summary] == [
        ({"attack.beta": beta}, "ok") for beta in BETAS
    ]


def test_what_was_finished_is_not_run_again(interrupted: Interrupted, resumed: Path) -> None:
    after = results_of(resumed)
    assert {path: after[path] for path in interrupted.finished} == interrupted.finished


def test_no_step_of_any_trial_is_run_twice(resumed: Path) -> None:
    steps = [
        [json.loads(line)["samples"] for line in path.read_text().splitlines()]
        for path in resumed.glob("*/metrics.jsonl")
    ]
    assert steps == [[8, 16]] * len(BETAS)


def test_tune_goes_on_with_the_trials_it_had_begun(interrupted: Interrupted, resumed: Path) -> None:
    assert tune_trials(resumed) == interrupted.tune_trials
    (record,) = (resumed / "tune").iterdir()
    recorded = {
        (path.parent.name.split("_")[2], line["status"], line["config"]["attack.beta"])
        for path in record.glob("trial_*/result.json")
        for line in map(json.loads, path.read_text().splitlines())
    }
    assert recorded == {(f"{i:05}", "ok", beta) for i, beta in enumerate(BETAS)}


def test_the_report_shows_the_response(resumed: Path) -> None:
    with (resumed / "response.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["attack.beta"]) for row in rows] == BETAS
    page = (resumed / "report.html").read_text()
    assert 'aria-label="Harm over attack.beta"' in page


def test_a_finished_sweep_is_read_back(resumed: Path, config: Path, cache: Path) -> None:
    before = results_of(resumed)
    result = rpa_ray(
        "sweep", str(config), "--output", str(resumed), cache=cache, cwd=resumed.parent
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "starting the cluster" not in result.stdout
    assert results_of(resumed) == before
