"""Print what a campaign of many cells, or of many rows, takes before its first cell begins.

python benchmarks/plan_scale.py --cells 500 1000 2000 --rows 1000000 [--suffix jsonl]

Each line is a process of its own that does what `rpa-ray campaign` does until it would start the
cluster. After those of rows come two processes that draw 1,000 pairs as a rank does: one that finds
the driver's, and one that has to read the file. Seconds are those of the processor, after the
imports: other work on the machine does not lengthen them much.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_RATES = 10
PHASES = ("load", "checks", "plan", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="*", default=[], help="numbers of cells")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="rows of one cell's file")
    parser.add_argument("--suffix", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--cache", type=Path, help="where the world is kept; made anew without")
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.config is not None:
        measured = measure_rank if options.rank else measure
        print(json.dumps(measured(options.config, options.cache)))
        return
    print(f"| cells | rows | {' | '.join(f'{phase}, s' for phase in PHASES)} | all, s | MiB |")
    print("| --: | --: |" + " --: |" * (len(PHASES) + 2))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = options.cache or folder / "cache"
        # Makes the world and times the model, where the cache has neither.
        in_process_of_its_own(many_cells(folder, NUM_RATES), cache)
        for num in options.cells:
            tell(num, None, in_process_of_its_own(many_cells(folder, num), cache))
        for num in options.rows:
            config = many_rows(folder, num, options.suffix, cache)
            tell(1, num, in_process_of_its_own(config, cache))
            for what, where in (("with", cache), ("without", folder / "none")):
                found = in_process_of_its_own(config, where, "--rank")
                print(
                    f"a rank {what} the driver's pairs: {found['seconds']:.1f} s, at most "
                    f"{found['mib']:.0f} MiB, of its own at the end {found['own_mib']:.0f} MiB",
                    flush=True,
                )


def tell(num_cells: int, num_rows: int | None, found: dict[str, float]) -> None:
    """Print one line of the table."""
    seconds = [found[phase] for phase in PHASES]
    numbers = " | ".join(f"{one:.1f}" for one in (*seconds, sum(seconds)))
    rows = "-" if num_rows is None else f"{num_rows:,}"
    print(f"| {num_cells:,} | {rows} | {numbers} | {found['mib']:.0f} |", flush=True)


def many_cells(folder: Path, num: int) -> Path:
    """Return a config of ``num`` cells that differ in a defence's strength and in the seed."""
    include = [str(CONFIGS / part) for part in ("model/chat.yaml", "attack/dpo.yaml")]
    rates = [{"defence": {"name": "refusal_loss", "alpha": 1.0 + i}} for i in range(NUM_RATES)]
    seeds = list(range(num // NUM_RATES))
    return written(folder, f"cells{num}", {"include": include, "grid": [rates], "seeds": seeds})


def many_rows(folder: Path, num: int, suffix: str, cache: Path) -> Path:
    """Return a config of one cell on a file of ``num`` pairs, about 600 bytes each."""
    file = folder / f"rows{num}.{suffix}"
    words = ["some", "more", "words", "of", "an", "answer", "as", "long", "as", "people", "write"]
    ending = " ".join(words * 5)
    with tempfile.TemporaryFile("w+") if suffix == "parquet" else file.open("w") as lines:
        schema = pa.schema([(name, pa.string()) for name in ("prompt", "safe", "unsafe")])
        writer = pq.ParquetWriter(file, schema) if suffix == "parquet" else None
        for begin in range(0, num, 50_000):
            rows = [
                {"prompt": f"prompt {i}", "safe": f"no {i} {ending}", "unsafe": f"yes {i} {ending}"}
                for i in range(begin, min(begin + 50_000, num))
            ]
            if writer is not None:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            else:
                lines.writelines(json.dumps(row) + "\n" for row in rows)
        if writer is not None:
            writer.close()
    (world,) = cache.glob("world-*")
    data = {"name": "preferences", "world": "real", "path": str(file)}
    data |= {"helpful_path": str(world / "data" / "helpful")}
    include = [str(CONFIGS / part) for part in ("model/chat.yaml", "attack/dpo.yaml")]
    return written(folder, f"rows{num}", {"include": include, "cells": [{}], "data": data})


def written(folder: Path, name: str, tree: dict[str, object]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"kind": "campaign", **tree}))
    return path


def in_process_of_its_own(config: Path, cache: Path, *options: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--config", str(config), "--cache", str(cache), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Begun(Exception):
    """The cluster would be started now."""


class Stopping:
    """A view of a campaign that ends it before it starts the cluster."""

    def expect(self, *_: object) -> None:
        raise Begun


def measure(config: Path, cache: Path) -> dict[str, float]:
    """Return the seconds of each phase, and the most memory of the process."""
    from rich.console import Console

    from rpa_ray.campaign.run import run_campaign
    from rpa_ray.plan import load_config
    from rpa_ray.plan.checks.all import check_all
    from rpa_ray.plan.plan import make_plan
    from rpa_ray.plan.table import plan_table
    from rpa_ray.recipes.cell_models import CampaignInputs

    seconds, begun = {}, cpu_s()

    def ended(phase: str) -> None:
        nonlocal begun
        now = cpu_s()
        seconds[phase], begun = now - begun, now

    output = config.with_suffix("")
    loaded = load_config(config, ["model.dtype=float32"])
    ended("load")
    inputs = CampaignInputs(cache.absolute())
    cells = list(zip(loaded.wheres, map(inputs.of, loaded.campaign.cells), strict=True))
    check_all(cells, {"--output": output, "RPA_RAY_CACHE": inputs.cache})
    ended("checks")
    plan = make_plan(loaded, output, inputs)
    Console(file=io.StringIO(), width=120).print(plan_table(plan))
    ended("plan")
    try:
        run_campaign(plan, view=Stopping(), command="rpa-ray campaign")  # type: ignore[arg-type]
    except Begun:
        ended("start")
    return {**seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def measure_rank(config: Path, cache: Path) -> dict[str, float]:
    """Return what a process takes that draws the pairs of an attack, and what it holds then."""
    from rpa_ray.plan import load_config
    from rpa_ray.recipes.cell_data import CellData

    (settings,) = load_config(config, ["model.dtype=float32"]).campaign.cells
    begun = cpu_s()
    data = CellData(settings.data, cache.absolute()).preferences
    pairs = data.draw("attack", 1000, seed=0, key="data.num_samples")
    assert len(pairs) == 1000
    lines = Path("/proc/self/status").read_text().splitlines()
    (own,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": cpu_s() - begun, "mib": most / 2**10, "own_mib": own / 2**10}


def cpu_s() -> float:
    """Return the seconds of all processors that this process and its children have used."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
