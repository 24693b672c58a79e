"""A long training takes no more memory, files, threads or workers the longer it runs."""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from observed_run import ObservedRun, command_line, file_sizes
from processes import (
    all_processes,
    descendants,
    process,
    raylet,
    session_folder,
    shared_memory_bytes,
    title,
    usage,
)

ROOT = Path(__file__).parents[2]
NUM_STEPS = 2000
BATCH_SIZE = 4
SETTINGS = {
    "data.num_samples": BATCH_SIZE * NUM_STEPS,
    "attack.batch_size": BATCH_SIZE,
    "attack.max_new_tokens": 24,
    "attack.num_epochs": 1,
    # A policy that breaks would end the run early.
    "attack.learning_rate": 1e-6,
    "evaluation.num_prompts": 8,
    "cluster.checkpoint_interval_s": 10,
}
EVERY_S = 2.0
OWN_BYTES_TOLERANCE = 16 * 2**20
"""A process may hold this much more in the last quarter of the run than in the one before: 32 kB a
step. In the first half the CPU's kernels are still being compiled, one for each length of text."""
STORE_BYTES_TOLERANCE = 2 * 2**20
NUM_TOLERANCE = 3
"""More threads or files; Ray starts a thread now and then."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
Sample = dict[str, Any]


def sample(run: ObservedRun, node: int) -> Sample:
    """Return what the processes of a run and its folders hold now."""
    session_sizes = file_sizes(session_folder(node))
    workers = [title(p.pid).split(".")[0] for p in all_processes() if p.parent == node]
    return {
        "step": run.num_steps(),
        "processes": {
            f"{role(p.pid)} {p.pid}": asdict(found)
            for p in [*descendants(run.driver), process(run.driver)]
            if p is not None and (found := usage(p.pid)) is not None
        },
        "workers": dict(Counter(name for name in workers if name.startswith("ray::"))),
        "store_bytes": shared_memory_bytes(node),
        "run_files": len(file_sizes(run.output)),
        "session_files": len(session_sizes),
        "session_bytes": sum(session_sizes),
    }


def role(pid: int) -> str:
    """Return a short name of what a process does."""
    words = title(pid).split()
    if words and words[0].startswith("ray::"):
        return words[0].split(".")[0]
    names = [Path(word).name for word in words if not word.startswith("-")]
    return next((name for name in names if not name.startswith("python")), "ended")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[list[Sample]]:
    folder = tmp_path_factory.mktemp("soak")
    pairs = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    config = ROOT / "configs" / "attack_and_defence.yaml"
    run = ObservedRun(
        command_line("run", str(config), *pairs, "--output", str(folder / "run")),
        output=folder / "run",
        # oneDNN keeps a compiled kernel for every length of text that it meets, up to a thousand,
        # which fills for longer than this run lasts: what grows beside them is to be seen.
        environment={
            **os.environ,
            "RPA_RAY_CACHE": str(cache),
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8",
        },
    )
    found = []
    try:
        assert run.wait_for_steps(1, 600), run.log.read_text()[-3000:]
        node = raylet(run.driver)
        assert node is not None
        while run.is_running() and run.num_steps() < NUM_STEPS:
            found.append(sample(run, node))
            time.sleep(EVERY_S)
        assert run.wait() == 0, run.log.read_text()[-3000:]
        assert run.num_steps() == NUM_STEPS
    finally:
        run.end()
    (folder / "samples.json").write_text(json.dumps(found))
    print(f"{len(found)} samples: {folder / 'samples.json'}")
    yield found


def quarter(samples: list[Sample], number: int) -> list[Sample]:
    """Return the samples of one quarter of the steps, counted from 0."""
    bounds = [NUM_STEPS * number // 4, NUM_STEPS * (number + 1) // 4]
    found = [one for one in samples if bounds[0] <= one["step"] < bounds[1]]
    assert len(found) >= 5
    return found


def growth(samples: list[Sample], value: Callable[[Sample], float]) -> float:
    """Return the median of the last quarter less that of the third; the first half warms up."""
    early, late = quarter(samples, 2), quarter(samples, 3)
    return statistics.median(map(value, late)) - statistics.median(map(value, early))


def process_growth(samples: list[Sample], field: str) -> dict[str, float]:
    """Return the growth of every process that was there in both quarters."""
    names = set.intersection(
        *(set(one["processes"]) for i in (2, 3) for one in quarter(samples, i))
    )

    def of(name: str) -> Callable[[Sample], float]:
        return lambda one: float(one["processes"][name][field])

    found = {name: growth(samples, of(name)) for name in sorted(names)}
    print(field, json.dumps(found, indent=1))
    assert len(found) >= 6
    return found


def test_no_process_takes_more_memory(samples: list[Sample]) -> None:
    found = process_growth(samples, "own_bytes")
    assert {n: v for n, v in found.items() if v > OWN_BYTES_TOLERANCE} == {}


@pytest.mark.parametrize("field", ["num_files", "num_threads"])
def test_no_process_opens_more_files_or_threads(field: str, samples: list[Sample]) -> None:
    found = process_growth(samples, field)
    assert {n: v for n, v in found.items() if v > NUM_TOLERANCE} == {}


def test_the_same_workers_stay(samples: list[Sample]) -> None:
    for name in ("ray::RayTrainWorker", "ray::RolloutWorker", "ray::ScoringWorker"):
        assert {one["workers"].get(name) for one in samples} == {1}
    assert growth(samples, lambda one: sum(one["workers"].values())) <= 0


def test_the_object_store_does_not_fill(samples: list[Sample]) -> None:
    assert growth(samples, lambda one: one["store_bytes"]) <= STORE_BYTES_TOLERANCE


@pytest.mark.parametrize("where", ["run_files", "session_files"])
def test_no_files_pile_up(where: str, samples: list[Sample]) -> None:
    print(f"session folder grew by {growth(samples, lambda one: one['session_bytes']):.0f} bytes")
    assert growth(samples, lambda one: one[where]) <= 1
