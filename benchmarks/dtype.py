"""Compare the two types of weights: samples a second of short SFT, DPO and PPO cells.

python benchmarks/dtype.py --output runs/dtype

Each campaign is one run with every cell in both types, first on the processor as it is, then as if
it had no AVX-512 (two variables that torch reads where it is imported). Only ratios within a
campaign say something.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMITATED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PROCESSORS: dict[str, dict[str, str]] = {"as it is": {}, "as if without AVX-512": IMITATED}
ATTACKS = ("sft", "dpo", "ppo")
DTYPES = ("float32", "bfloat16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "dtype")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    print("| processor | attack | float32, samples/s | bfloat16, samples/s | ratio | by itself |")
    print("| --- | --- | --: | --: | --: | --- |", flush=True)
    for number, (processor, variables) in enumerate(PROCESSORS.items()):
        folder = options.output / str(number)
        natural = run(folder, variables)
        rates = rates_of(folder)
        for attack in ATTACKS:
            exact, short = (statistics.median(rates[attack, dtype]) for dtype in DTYPES)
            ratio = f"{short / exact:.2f}"
            print(
                f"| {processor} | {attack} | {exact:.2f} | {short:.2f} | {ratio} | {natural} |",
                flush=True,
            )
    return 0


def run(folder: Path, variables: dict[str, str]) -> str:
    """Run the campaign; return the type that the same processor chooses by itself."""
    command = [str(Path(sys.executable).with_name("rpa-ray")), "campaign"]
    command += [str(Path(__file__).with_suffix(".yaml")), "--output", str(folder)]
    environment = {**os.environ, **variables}
    with folder.with_suffix(".log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
    asked = "from rpa_ray.cluster.hardware import native_dtype as n; f = n(False)\n"
    asked += "print(f'{f.dtype} (layer: bfloat16 takes {f.factor:.2f} times as long)')"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def rates_of(folder: Path) -> dict[tuple[str, str], list[float]]:
    """Return the samples a second of each attack in each type, one number a seed."""
    rates: dict[tuple[str, str], list[float]] = {}
    for record in json.loads((folder / "summary.json").read_text()):
        outcome: dict[str, Any] = json.loads(
            (folder / record["run"] / "evaluation.json").read_text()
        )
        key = record["attack"], record["params"]["model.dtype"]
        rates.setdefault(key, []).append(outcome["throughput"]["samples_per_s"])
    return rates


if __name__ == "__main__":
    sys.exit(main())
