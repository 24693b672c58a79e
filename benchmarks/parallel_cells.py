"""Compare ways to run two cells on two cores: in turn, side by side, and in turn on two ranks each.

python benchmarks/parallel_cells.py --output runs/parallel_cells

Seconds of work are from the start of the first cell to the end of the last; seconds in all add the
start and the end of cluster and workers.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = {
    "in turn, one rank": ["cluster.parallel_cells=1"],
    "side by side, one rank each": ["cluster.parallel_cells=2"],
    "in turn, two ranks": ["cluster.parallel_cells=1", "cluster.num_ranks=2"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "parallel_cells")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    print("| two cells | seconds of work | seconds in all |\n| --- | --: | --: |", flush=True)
    for repeat in range(options.repeats):
        for way, settings in WAYS.items():
            folder = options.output / f"{way.replace(', ', '-').replace(' ', '_')}-{repeat}"
            work_s, all_s = run(folder, settings)
            print(f"| {way} | {work_s:.1f} | {all_s:.1f} |", flush=True)
    return 0


def run(folder: Path, settings: list[str]) -> tuple[float, float]:
    """Return the seconds from the first cell's start to the last one's end, and of the command."""
    config = Path(__file__).with_suffix(".yaml")
    command = [str(Path(sys.executable).with_name("rpa-ray")), "campaign", str(config)]
    command += ["--output", str(folder)]
    command += [word for setting in settings for word in ("--set", setting)]
    begun = time.time()
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    all_s = time.time() - begun
    times = [json.loads(p.read_text())["times"] for p in folder.glob("*/evaluation.json")]
    assert len(times) == 2
    return max(t["finished"] for t in times) - min(t["started"] for t in times), all_s


if __name__ == "__main__":
    sys.exit(main())
