"""A run that loses processes records what an undisturbed one records, each sample once."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from observed_run import Comparison, ObservedRun, command_line, compare

ROOT = Path(__file__).parents[2]
NUM_STEPS = 18
# The driver first: Ray's own agents on the machine notice its end a minute later.
KILLS = [
    (2, "driver"),
    (5, "engine generating"),
    (8, "rank in a push"),
    (11, "scorer scoring"),
]
SETTINGS = {
    "data.num_samples": 8 * NUM_STEPS,
    "attack.max_new_tokens": 32,
    "evaluation.num_prompts": 8,
    # A few steps are done again after the loss of a rank.
    "cluster.checkpoint_interval_s": 1.5,
}

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


def command(output: Path) -> list[str]:
    pairs = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    config = ROOT / "configs" / "attack_and_defence.yaml"
    return command_line("run", str(config), *pairs, "--output", str(output))


def start(output: Path, cache: Path) -> ObservedRun:
    environment = {**os.environ, "RPA_RAY_CACHE": str(cache)}
    return ObservedRun(command(output), output=output, environment=environment)


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[ObservedRun]:
    """Return a run that nothing disturbs, early in it: its folder is its own by now."""
    run = start(tmp_path_factory.mktemp("runs") / "undisturbed", cache)
    try:
        assert run.wait_until_begun(), run.log.read_text()[-3000:]
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def undisturbed(at_work: ObservedRun) -> ObservedRun:
    assert at_work.wait() == 0, at_work.log.read_text()[-3000:]
    return at_work


@pytest.fixture(scope="module")
def disturbed(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, at_work: ObservedRun
) -> Iterator[ObservedRun]:
    """Return a run with its kills behind it, each found in its state, but not at its end.

    The undisturbed one goes on beside it.
    """
    run = start(tmp_path_factory.mktemp("runs") / "disturbed", cache)
    rng = random.Random(0)
    try:
        for step, kind in KILLS:
            assert run.wait_for_steps(step), f"no step {step}\n{run.log.read_text()[-3000:]}"
            assert run.kill(kind, rng, within_s=0.2) is not None, f"{kind} was not met"
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def comparison(undisturbed: ObservedRun, disturbed: ObservedRun) -> Comparison:
    assert disturbed.wait() == 0, disturbed.log.read_text()[-3000:]
    return compare(undisturbed.output, disturbed.output)


def test_a_second_run_in_the_same_folder_is_refused_at_once(
    at_work: ObservedRun, cache: Path
) -> None:
    second = subprocess.run(
        command(at_work.output),
        env={**os.environ, "RPA_RAY_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert str(at_work.output) in second.stderr
    assert "one process at a time" in second.stderr
    assert at_work.is_running()


def test_nothing_that_is_recorded_differs_from_the_undisturbed_run(
    comparison: Comparison,
) -> None:
    assert comparison.differences == []
    assert comparison.num_values > 40 * NUM_STEPS


def test_no_step_is_lost_and_none_is_recorded_twice(
    comparison: Comparison, disturbed: ObservedRun
) -> None:
    assert disturbed.num_steps() == NUM_STEPS


def test_no_process_of_a_killed_driver_is_left(
    comparison: Comparison, disturbed: ObservedRun
) -> None:
    assert disturbed.left_over() == []


def test_checkpoints_and_locks_leave_nothing_behind(
    comparison: Comparison, undisturbed: ObservedRun, disturbed: ObservedRun
) -> None:
    assert files(disturbed.output) - files(undisturbed.output) == {"losses.log"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
