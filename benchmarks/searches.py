"""Measure sweeps: interrupted and resumed, beside single runs, and what early stopping saves.

python benchmarks/searches.py --output runs/searches

First a grid over rho, alpha and beta (searches.yaml) that is interrupted after a third of its
trials and resumed, and each of its trials by a command of its own. Then the search of
configs/attacker_search.yaml for a learning rate, without a scheduler and with ASHA, from the same
ten random points. Prints the two tables of the note.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GRID = Path(__file__).with_suffix(".yaml")
SEARCH = ROOT / "configs" / "attacker_search.yaml"
COMMAND = str(Path(sys.executable).with_name("rpa-ray"))
INTERRUPTED_AFTER = 4
"""Trials of the grid that are done when it is interrupted."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "searches")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    measure_grid(options.output)
    compare_searches(options.output)
    return 0


def measure_grid(output: Path) -> None:
    """Print how long a grid takes that is interrupted, and its trials one by one."""
    folder = output / "grid"
    interrupted_s = run("sweep", GRID, folder, interrupt_after=INTERRUPTED_AFTER)
    before = results(folder)
    resumed_s = run("sweep", GRID, folder, "--resume")
    after = results(folder)
    assert all(after[name] == before[name] for name in before), "a trial was run twice"
    print(f"{len(after)} results, {len(before)} of them before the interruption, none run twice.\n")
    print("| way | seconds | ratio |\n| --- | --: | --: |", flush=True)
    whole_s = run("sweep", GRID, output / "whole")
    single_s = sum(
        run("run", trial / "config.yaml", output / "single" / trial.name)
        for trial in sorted((output / "whole").iterdir())
        if (trial / "config.yaml").is_file()
    )
    for way, seconds in (
        (f"{len(after)} commands, one a trial", single_s),
        ("one sweep", whole_s),
        ("one sweep, interrupted and resumed", interrupted_s + resumed_s),
    ):
        print(f"| {way} | {seconds:.0f} | {seconds / single_s:.2f} |", flush=True)


def compare_searches(output: Path) -> None:
    """Print the best trial of a search with and without a scheduler, and what each cost."""
    print("\n| search | trials stopped | samples trained on | seconds | best rate | its harm |")
    print("| --- | --: | --: | --: | --: | --: |", flush=True)
    for name, setting in (("whole", "sweep.scheduler=null"), ("ASHA", "sweep.scheduler=asha")):
        seconds = run("sweep", SEARCH, output / name, "--set", setting)
        found = outcomes(output / name)
        points = json.loads((output / name / "search.json").read_text())["points"]
        rates = rate_of_run(output / name)
        ended = {trial: one for trial, one in found.items() if one["metrics"]}
        best = max(ended, key=lambda trial: ended[trial]["metrics"]["harm"]["mean"])
        harm = ended[best]["metrics"]["harm"]
        num_samples = sum(one["num_samples"] for one in found.values())
        assert len(points) == len(found)
        print(
            f"| {name} | {len(found) - len(ended)} of {len(found)} | {num_samples} | {seconds:.0f} "
            f"| {rates[best]:.1e} "
            f"| {harm['mean']:.2f} [{harm['ci_low']:.2f}, {harm['ci_high']:.2f}] |",
            flush=True,
        )


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each trial came to, by its name."""
    return {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/evaluation.json")
    }


def results(folder: Path) -> dict[str, int]:
    """Return when each result was written that is not that of an interruption."""
    return {
        name: (folder / name / "evaluation.json").stat().st_mtime_ns
        for name, outcome in outcomes(folder).items()
        if outcome["status"] != "failed"
    }


def rate_of_run(folder: Path) -> dict[str, float]:
    """Return the learning rate of each trial."""
    import yaml

    return {
        path.parent.name: yaml.safe_load(path.read_text())["attack"]["learning_rate"]
        for path in folder.glob("*/config.yaml")
    }


def run(
    kind: str, config: Path, folder: Path, *more: str, interrupt_after: int | None = None
) -> float:
    """Return the seconds that a command takes, until it ends or so many trials are done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [COMMAND, kind, str(config), "--output", str(folder), *more]
    begun = time.monotonic()
    with folder.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            if interrupt_after is not None and len(results(folder)) >= interrupt_after:
                process.send_signal(signal.SIGINT)
                process.wait()
                assert process.returncode == 130
            time.sleep(0.1)
    assert interrupt_after is not None or process.returncode == 0, folder.with_suffix(".log")
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
