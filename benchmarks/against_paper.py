"""Set a campaign of configs/paper/table3.yaml beside tables 1 and 3 of arXiv:2409.12914.

python benchmarks/against_paper.py runs/table3

The paper's numbers are those of Llama-2-7b-chat (benchmarks/paper_table3.json); what can agree with
those of another model is the order of the defences. Spearman's correlation is over the defences of
one attack on one data set, the undefended attack among them, and over all rows at once. A run that
failed has no harmfulness in either and is left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rpa_ray.evaluation.statistics import spearman

PAPER = Path(__file__).with_name("paper_table3.json")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the campaign")
    options = parser.parse_args()
    ours: list[Row] = json.loads((options.folder / "summary.json").read_text())
    paper = {key_of(row): row for row in json.loads(PAPER.read_text())}
    print_rows(ours, paper)
    print()
    print_correlations(ours, paper)
    return 0


def key_of(row: Row) -> tuple[str, str, str]:
    """Return data set, attack and defence of a row of either."""
    return row.get("data") or row["dataset"], row["attack"], row["defence"]


def print_rows(ours: list[Row], paper: dict[tuple[str, str, str], Row]) -> None:
    headings = ["Data", "Attack", "Defence", "Paper", *(heading for _, heading, _ in COLUMNS)]
    print("| " + " | ".join(headings) + " |")
    print("| --- | --- | --- |" + " --: |" * (len(headings) - 3))
    for row in ours:
        told = paper.get(key_of(row))
        harm = "-" if told is None else "failed" if told["harmfulness"] is None else None
        harm = harm or f"{told['harmfulness']:.2f}"  # type: ignore[index]
        cells = [*key_of(row), harm]
        if row["status"] != "ok":
            cells.append(f"{row['status'].replace('_', ' ')} at step {row['step_failed']}")
            cells += [""] * (len(COLUMNS) - 1)
        else:
            cells += [text_of(row["metrics"][name], name, digits) for name, _, digits in COLUMNS]
        print("| " + " | ".join(cells) + " |")


def text_of(estimate: Row, name: str, digits: int) -> str:
    if estimate["mean"] is None:
        return "-"
    mean = f"{estimate['mean']:.{digits}f}"
    if name not in CORRELATED:
        return mean
    return f"{mean} [{estimate['ci_low']:.{digits}f}, {estimate['ci_high']:.{digits}f}]"


def print_correlations(ours: list[Row], paper: dict[tuple[str, str, str], Row]) -> None:
    pairs: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in ours:
        told = paper.get(key_of(row))
        if row["status"] != "ok" or told is None or told["harmfulness"] is None:
            continue
        if row["attack"] != "none":
            group = key_of(row)[:2]
            pairs.setdefault(group, []).append((told["harmfulness"], row["metrics"]))
    print("| Data | Attack | rows | Spearman, greedy | Spearman, sampled |")
    print("| --- | --- | --: | --: | --: |")
    groups = [*pairs.items(), (("both", "all"), [pair for held in pairs.values() for pair in held])]
    for (data, attack), held in groups:
        found = [
            spearman([harm for harm, _ in held], [metrics[name]["mean"] for _, metrics in held])
            for name in CORRELATED
        ]
        numbers = " | ".join("-" if value is None else f"{value:.2f}" for value in found)
        print(f"| {data} | {attack} | {len(held)} | {numbers} |")


if __name__ == "__main__":
    sys.exit(main())
