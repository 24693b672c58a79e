"""Set campaigns of configs/paper/table3.yaml beside tables 1 and 3 of arXiv:2409.12914.

python -m rpa_ray.paper.compare runs/table3
python -m rpa_ray.paper.compare runs/table3 runs/table3_seed1  # a folder a seed

The paper's numbers are those of Llama-2-7b-chat (rpa_ray/paper/table3.json); what can agree with
those of another model is the order of the defences. Spearman's correlation is over the defences of
one attack on one data set, the undefended attack among them, and over all rows at once; it ranks
means to two decimals, as both tables print them. A run that failed has no harmfulness in either and
is left out ("Runs", of several seeds, counts the others). In brackets are the ends of the interval
over the prompts of one run or, of several seeds, the smallest and the largest.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from rpa_ray.evaluation.rank_agreement import spearman_of_means
from rpa_ray.paper.numbers import numbers
from rpa_ray.run_folder.names import SUMMARY

COLUMNS = (
    ("p_harm", "Harmful", 2),
    ("p_harm_sampled", "Sampled", 2),
    ("harm_fluent", "Harmful, fluent", 2),
    ("valid", "Valid", 2),
    ("ppl_median", "PPL", 1),
    ("kl_seq_rb", "KL", 1),
    ("helpfulness", "Helpful", 2),
)
CORRELATED = ("p_harm", "p_harm_sampled")
Row = dict[str, Any]
Key = tuple[str, str, str]


def main() -> int:
    """Print both tables side by side, then how far their orders agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="of the campaigns, one a seed")
    cells = cells_of(parser.parse_args().folders)
    paper = {key_of(row): row for row in numbers("table3")}
    print_rows(cells, paper)
    print()
    print_correlations(cells, paper)
    return 0


def cells_of(folders: list[Path]) -> list[list[Row]]:
    """Return the rows of all folders, those together that differ in nothing but the seed."""
    found: dict[tuple[Any, ...], dict[int, Row]] = {}
    for folder in folders:
        for row in json.loads((folder / SUMMARY).read_text()):
            seeds = found.setdefault((*key_of(row), row["model"], json.dumps(row["params"])), {})
            if row["seed"] in seeds:
                words = " ".join(key_of(row))
                raise SystemExit(
                    f"{folder} has {words} of seed {row['seed']} once more: name it once"
                )
            seeds[row["seed"]] = row
    return [list(seeds.values()) for seeds in found.values()]


def key_of(row: Row) -> Key:
    """Return data set, attack and defence of a row of either."""
    return row.get("data") or row["dataset"], row["attack"], row["defence"]


def print_rows(cells: list[list[Row]], paper: dict[Key, Row]) -> None:
    """Print one line a cell, the paper's harmfulness before ours."""
    several = max(len(cell) for cell in cells) > 1
    headings = ["Data", "Attack", "Defence", "Paper", *(["Runs"] if several else [])]
    headings += [heading for _, heading, _ in COLUMNS]
    print("| " + " | ".join(headings) + " |")
    print("| --- | --- | --- |" + " --: |" * (len(headings) - 3))
    for cell in cells:
        texts = [*key_of(cell[0]), told_by(paper.get(key_of(cell[0])))]
        found = metrics_of(cell)
        texts += [f"{len(found)} of {len(cell)}"] if several else []
        if not found:
            texts.append(f"{cell[0]['status'].replace('_', ' ')} at step {cell[0]['step_failed']}")
            texts += [""] * (len(COLUMNS) - 1)
        for name, _, digits in COLUMNS if found else ():
            estimates = [metrics[name] for metrics in found if metrics[name]["mean"] is not None]
            texts.append(text_of(estimates, digits, several, name in CORRELATED))
        print("| " + " | ".join(texts) + " |")


def told_by(paper: Row | None) -> str:
    """Return the harmfulness that the paper has for a cell."""
    if paper is None:
        return "-"
    return "failed" if paper["harmfulness"] is None else f"{paper['harmfulness']:.2f}"


def metrics_of(cell: list[Row]) -> list[Row]:
    """Return the metrics of the runs that did not fail."""
    return [row["metrics"] for row in cell if row["status"] == "ok"]


def text_of(estimates: list[Row], digits: int, several: bool, is_correlated: bool) -> str:
    """Return the mean of a metric over runs, with an interval where there is one."""
    if not estimates:
        return "-"
    means = [estimate["mean"] for estimate in estimates]
    text = f"{fmean(means):.{digits}f}"
    if several:
        return f"{text} [{min(means):.{digits}f}, {max(means):.{digits}f}]"
    if is_correlated:
        low, high = estimates[0]["ci_low"], estimates[0]["ci_high"]
        return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def print_correlations(cells: list[list[Row]], paper: dict[Key, Row]) -> None:
    """Print Spearman's correlation of ours with the paper's, attack by attack and over all."""
    pairs: dict[tuple[str, str], list[tuple[float, list[Row]]]] = {}
    for cell in cells:
        data, attack, _ = key = key_of(cell[0])
        told, found = paper.get(key), metrics_of(cell)
        if found and told is not None and told["harmfulness"] is not None and attack != "none":
            pairs.setdefault((data, attack), []).append((told["harmfulness"], found))
    print("| Data | Attack | rows | Spearman, greedy | Spearman, sampled |")
    print("| --- | --- | --: | --: | --: |")
    groups = [*pairs.items(), (("both", "all"), [pair for held in pairs.values() for pair in held])]
    for (data, attack), held in groups:
        values = [
            spearman_of_means(
                [harm for harm, _ in held],
                [fmean(metrics[name]["mean"] for metrics in found) for _, found in held],
            )
            for name in CORRELATED
        ]
        numbers = " | ".join("-" if value is None else f"{value:.2f}" for value in values)
        print(f"| {data} | {attack} | {len(held)} | {numbers} |")


if __name__ == "__main__":
    sys.exit(main())
