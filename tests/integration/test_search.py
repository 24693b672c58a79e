"""A search on Ray Tune with Optuna and ASHA, interrupted and resumed: real trials, some stopped."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import rpa_ray
from observed_run import ObservedRun, command_line

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_TRIALS = 12
"""Two more than have random points."""
SEARCH = f"""
kind: sweep
include:
  - {CONFIGS}/model/chat.yaml
  - {CONFIGS}/data/beavertails_embedded.yaml
  - {CONFIGS}/attack/dpo.yaml
  - {CONFIGS}/cluster/cpu.yaml
data: {{num_samples: 64}}
attack: {{learning_rate: 5.0e-4}}
defence: {{name: refusal_loss}}
evaluation: {{num_prompts: 8, num_look_prompts: 8, num_looks: 4, num_resamples: 100}}
cluster: {{parallel_cells: 1}}
mode: max
sweep:
  search: optuna
  num_trials: {NUM_TRIALS}
  scheduler: asha
  data.rho: [0.0, 1.0]
  defence.alpha: {{log: [1.0e-3, 1.0e+2]}}
  attack.beta: {{log: [1.0e-2, 1.0]}}
"""
POLL_S = 0.02

pytestmark = pytest.mark.timeout(1500)


def results_of(output: Path) -> dict[Path, int]:
    """Return when results were written; what an interruption broke off is recorded as failed."""
    return {
        path: path.stat().st_mtime_ns
        for path in output.glob("*/evaluation.json")
        if outcome(path)["status"] != "failed"
    }


def outcome(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "search.yaml"
    path.write_text(SEARCH, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def interrupted(
    config: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[Path, int]]]:
    """Return the folder of a search that was interrupted, and when its results were written."""
    output = tmp_path_factory.mktemp("search") / "out"
    command = command_line("sweep", str(config), "--output", str(output))
    run = ObservedRun(
        command, output=output, environment={**os.environ, "RPA_RAY_CACHE": str(cache)}
    )
    try:
        while len(results_of(output)) < 4 and run.is_running():
            time.sleep(POLL_S)
    finally:
        run.end()
    assert run.wait() == 130, run.log.read_text()[-3000:]
    yield output, results_of(output)


@pytest.fixture(scope="module")
def resumed(interrupted: tuple[Path, dict[Path, int]], config: Path, cache: Path) -> Path:
    output, finished = interrupted
    assert 4 <= len(finished) < NUM_TRIALS
    arguments = ("sweep", str(config), "--resume", "--output", str(output))
    result = rpa_ray(*arguments, cache=cache, cwd=output.parent)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert f"{NUM_TRIALS} trials, {len(finished)} done" in result.stdout.replace("\n", " ")
    return output


def test_every_trial_has_a_result_and_none_is_run_twice(
    interrupted: tuple[Path, dict[Path, int]], resumed: Path
) -> None:
    summary = json.loads((resumed / "summary.json").read_text())
    assert len({record["run"] for record in summary}) == NUM_TRIALS
    assert {record["status"] for record in summary} == {"ok", "stopped"}
    finished = interrupted[1]
    after = results_of(resumed)
    assert {path: after[path] for path in finished} == finished
    assert len(after) == NUM_TRIALS


def test_points_that_follow_from_results_are_written_down(resumed: Path) -> None:
    points = json.loads((resumed / "search.json").read_text())["points"]
    assert len(points) == NUM_TRIALS
    assert all(0.001 <= point["defence.alpha"] <= 100 for point in points)


def test_a_stopped_trial_ends_at_a_look_without_metrics(resumed: Path) -> None:
    found = [outcome(path) for path in results_of(resumed)]
    for one in found:
        samples = [look["samples"] for look in one["looks"]]
        if one["status"] == "stopped":
            assert one["metrics"] == {}
            assert samples[-1] == one["num_samples"] < 64
        else:
            assert samples == [0, 8, 16, 40, 64]
            assert "harm" in one["metrics"]
    assert not list(resumed.glob("*/checkpoints"))


def test_no_step_of_any_trial_is_run_twice(resumed: Path) -> None:
    for path in results_of(resumed):
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(len(steps)))


def test_the_report_shows_the_search(resumed: Path) -> None:
    page = (resumed / "report.html").read_text()
    assert 'aria-label="Best Harm by number of trials"' in page
    assert page.count('class="shaded') == NUM_TRIALS
    assert "stopped_samples" in (resumed / "response.csv").read_text()
