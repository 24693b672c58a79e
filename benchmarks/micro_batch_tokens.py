"""Compare steps of GRPO whose passes read whole batches with those that read them by length.

python benchmarks/micro_batch_tokens.py --output runs/micro_batch_tokens

The ways take turns, each run with a cluster of its own. "Read" is what learner and frozen model
make of the answers before the update, "learn" the update, "step" all of it with the sampling:
medians over the steps of a run. Ratios are to the first way within a repetition, medians over
those.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMES = {"read": "time/experience_s", "learn": "time/learner_s", "step": "time/step_s"}
NUM_WARM_STEPS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "micro_batch_tokens")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 2048, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    ways = [None, *options.tokens]
    found: dict[int | None, list[dict[str, float]]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for way in ways if repeat % 2 == 0 else reversed(ways):
            print(f"repetition {repeat}: {way or 'whole'}", file=sys.stderr, flush=True)
            found[way].append(seconds(options.output / f"{way or 'whole'}-{repeat}", way))
    print(f"| tokens of a pass | {' | '.join(f'{name}, s | ratio' for name in TIMES)} |")
    print(f"| --- |{' --: |' * 2 * len(TIMES)}")
    for way, runs in found.items():
        numbers = []
        for name in TIMES:
            own = [run[name] for run in runs]
            ratios = [run[name] / whole[name] for run, whole in zip(runs, found[None], strict=True)]
            numbers += [f"{statistics.median(own):.2f}", f"{statistics.median(ratios):.2f}"]
        print(f"| {way or 'the whole batch'} | {' | '.join(numbers)} |", flush=True)
    return 0


def seconds(folder: Path, max_tokens: int | None) -> dict[str, float]:
    """Return the median seconds of a step's parts in one run."""
    config = Path(__file__).with_suffix(".yaml")
    command = [str(Path(sys.executable).with_name("rpa-ray")), "run", str(config)]
    command += ["--output", str(folder)]
    if max_tokens is not None:
        command += ["--set", f"cluster.micro_batch_tokens={max_tokens}"]
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    (metrics,) = folder.rglob("metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()][NUM_WARM_STEPS:]
    return {name: statistics.median(step[key] for step in steps) for name, key in TIMES.items()}


if __name__ == "__main__":
    sys.exit(main())
