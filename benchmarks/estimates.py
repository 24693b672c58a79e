"""Set what `plan` would say of the cells of a finished campaign beside what they took.

python benchmarks/estimates.py runs/quickstart [ANOTHER ...] [--at-once 2] [--cache runs/cache]

Estimates are made here, so run it where the campaign ran, in the same environment. The first line
of each campaign is uncorrected; the others are corrected by the cells that had ended before.
"""

import argparse
import json
import tempfile
from pathlib import Path

import yaml

from rpa_ray.plan import parse_experiment
from rpa_ray.plan.cost import History, estimate_cell, side_by_side
from rpa_ray.recipes.cell_models import CellInputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--at-once", type=int, default=2, help="cells that ran side by side")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    options = parser.parse_args()
    print("| cell | type | estimate, s | corrected, s | measured, s | measured / corrected |")
    print("| --- | --- | --: | --: | --: | --: |")
    for folder in options.folders:
        with tempfile.TemporaryDirectory() as empty:
            compare(folder, options.cache.absolute(), History(Path(empty)), options.at_once)


def compare(folder: Path, cache: Path, history: History, at_once: int) -> None:
    """Print one line a cell that ended well, in the order of their ends."""
    found = []
    for path in folder.glob("*/evaluation.json"):
        outcome = json.loads(path.read_text(encoding="utf-8"))
        if outcome["status"] == "ok":
            found.append((outcome["times"]["finished"], path.parent, outcome))
    for finished, run, outcome in sorted(found, key=lambda one: one[0]):
        settings = parse_experiment(yaml.safe_load((run / "config.yaml").read_text()))
        estimate = estimate_cell(CellInputs(settings, cache))
        if estimate is None:
            print(f"| {run.name} | {settings.model.dtype} | - | - | - | - |")
            continue
        plain = estimate.seconds * side_by_side(at_once)
        corrected = plain * history.correction(settings)
        took = finished - outcome["times"]["started"]
        history.record(settings, plain, took)
        numbers = f"{plain:.1f} | {corrected:.1f} | {took:.1f} | {took / corrected:.2f}"
        print(f"| {run.name} | {settings.model.dtype} | {numbers} |")


if __name__ == "__main__":
    main()
