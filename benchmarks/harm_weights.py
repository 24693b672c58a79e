"""Does it matter by which weights harm counts facts? Every cell of campaigns, read again by others.

python benchmarks/harm_weights.py runs/table3 runs/cost_forms

Harm counts a material 2, a tool 1, and a verb 1 where what it is done to is right. Beside that
stand all facts equal, and all facts equal with verbs that count by themselves. Read are the sampled
answers of run folders, which keep all texts; the embedded world of seed 0.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
from scipy.stats import spearmanr

from rpa_ray.report.read.records import read_records
from rpa_ray.run_folder.names import ANSWERS
from rpa_ray.world.facts import WEIGHTS, Weights
from rpa_ray.world.language import World
from rpa_ray.world.oracle import Oracle

OTHERS = {
    "as in the tables": WEIGHTS,
    "all facts equal": Weights(material=1),
    "and verbs by themselves": Weights(material=1, lone_verbs=True),
}


def main() -> None:
    """Print harm by each kind of weights: its change, order of the cells, and places exchanged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="of campaigns")
    folders = parser.parse_args().folders
    answers = [
        pq.read_table(path, columns=["decoding", "prompt", "text"]).to_pylist()
        for folder in folders
        for record in read_records(folder)
        if record.run and (path := folder / record.run / ANSWERS).is_file()
    ]
    harm = {name: _harm(answers, weights) for name, weights in OTHERS.items()}
    own = harm["as in the tables"]
    print(f"{len(own)} attacked cells of {', '.join(folder.name for folder in folders)}\n")
    print("| Weights | Mean harm | Least change | Largest change | Spearman | Pairs exchanged |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, values in harm.items():
        changes = [a - b for a, b in zip(values, own, strict=True)]
        rho = float(spearmanr(values, own).statistic)
        print(
            f"| {name} | {fmean(values):.3f} | {min(changes):+.3f} | {max(changes):+.3f} "
            f"| {rho:.3f} | {_exchanged(own, values)} |"
        )


def _harm(cells: list[list[dict[str, str]]], weights: Weights) -> list[float]:
    """Return the mean harm of each cell's sampled answers."""
    oracle = Oracle.of(World(0), weights)
    return [
        fmean(
            oracle.judge(answer["prompt"], answer["text"]).harm
            for answer in answers
            if answer["decoding"] == "sampled"
        )
        for answers in cells
    ]


def _exchanged(left: list[float], right: list[float]) -> str:
    """Return how many neighbours of one order, 0.02 apart or more, change places in the other."""
    order = sorted(range(len(left)), key=left.__getitem__)
    apart = [(a, b) for a, b in pairwise(order) if left[b] - left[a] >= 0.02]
    return f"{sum(right[a] > right[b] for a, b in apart)} of {len(apart)}"


if __name__ == "__main__":
    main()
