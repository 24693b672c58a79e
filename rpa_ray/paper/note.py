"""Write the tables and numbers of a note from its evidence, so that none is written by hand.

python -m rpa_ray.paper.note benchmarks/table3_cpu2_202611.md
python -m rpa_ray.paper.note --check benchmarks/table3_cpu2_202611.md   # changes nothing

A note names its tables between two lines:

<!-- table: differences table3 -->
(what stands here is written anew)
<!-- end of table -->

The first word is one of TABLES below, the others are folders beside the note: of the two files that
`rpa-ray evidence` writes or, of campaigns before there were such, of a summary.json.

A number in a sentence is named by metric, folder and row: data, attack, defence or label of the
row. Where rows differ in nothing else, behind the attack its samples or share of reversed
preferences (`sft 1000`, `sft rho 0.5`), before the defence the model (`base lisa`); ` seed 1`
behind all for one seed alone. `value` is the mean, `interval` has its ends too:

it was <!-- value: harm table3 beavertails/ppo/none -->0.67<!-- end --> without a defence
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean

from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.paper.compare import agreement_text, cells_of, key_of, rows_table
from rpa_ray.paper.gaps import gap_curves_table
from rpa_ray.paper.hacking import detectors_table, rewards_table
from rpa_ray.paper.oscillation import oscillation_table
from rpa_ray.report.evidence import read_cells
from rpa_ray.report.read.definitions import METRIC_BY_NAME, METRICS, REWARD_GAIN
from rpa_ray.report.read.folder import read_campaign
from rpa_ray.report.read.groups import Cell
from rpa_ray.report.tables.best_of_n import best_of_n_table
from rpa_ray.report.tables.differences import differences_table, pairs_table
from rpa_ray.report.tables.main import (
    MISSING,
    cells_table,
    format_spread,
    format_value,
    oracle_table,
)
from rpa_ray.report.tables.side import SideTable, side_table_markdown
from rpa_ray.run_folder.files import write_text
from rpa_ray.terminal import printable

BLOCK = re.compile(
    r"(?P<begin><!-- table: (?P<name>\w+)(?P<folders>( [\w./-]+)+) -->\n)"
    r"((?!<!-- table).)*?(?P<end><!-- end of)",
    re.DOTALL,
)
INLINE = re.compile(
    r"(?P<begin><!-- (?P<kind>value|interval): (?P<metric>\w+) (?P<folder>[\w./-]+) "
    r"(?P<row>.+?)( seed (?P<seed>\d+))? -->)[^<\n]*(?P<end><!-- end -->)"
)
BEGIN = re.compile(r"<!--\s*(table|value|interval)\b[^\n]*")
"""What is meant to be one of both; one that is not as above would never be held to its records."""


def main() -> int:
    """Write tables and numbers of notes; with ``--check`` only say whether they are so already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notes", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = 0
    for note in options.notes:
        text = note.read_text(encoding="utf-8")
        try:
            written = with_tables(text, note.parent)
        except ValueError as error:
            print(printable(f"{note}: {error}"), file=sys.stderr)
            return 2
        if written == text:
            continue
        stale += 1
        if options.check:
            print(f"{note}: not what its records give; write it with this command", file=sys.stderr)
        else:
            write_text(note, written)
            print(f"{note}: written")
    return 1 if options.check and stale else 0


def with_tables(text: str, place: Path) -> str:
    """Return a note with tables and numbers written anew; ``place`` is where its folders lie.

    Raises:
        ValueError: a table, a metric or a row is unknown, a folder has no records, or a table or a
            number is not marked as it should be.
    """
    marked = {found.start() for form in (BLOCK, INLINE) for found in form.finditer(text)}
    for begin in BEGIN.finditer(text):
        if begin.start() not in marked:
            raise ValueError(
                "a mark must be `<!-- table: NAME FOLDER -->` on a line of its own, down to "
                "`<!-- end of table -->`, or `<!-- value: METRIC FOLDER ROW -->` (or `interval`) "
                f"up to `<!-- end -->` on the same line, got {begin[0]!r}. Mend the note."
            )
    cells = cache(lambda folder: cells_of([place / folder]))

    def written(found: re.Match[str]) -> str:
        make = TABLES.get(found["name"])
        if make is None:
            known = ", ".join(TABLES)
            raise ValueError(f"table must be one of {known}, got {found['name']}. Mend the note.")
        folders = [place / folder for folder in found["folders"].split()]
        return f"{found['begin']}{make(folders).strip()}\n{found['end']}"

    def told(found: re.Match[str]) -> str:
        cell = _cell(cells(found["folder"]), found["row"], found["seed"])
        number = _number(cell, found["metric"], with_ends=found["kind"] == "interval")
        return f"{found['begin']}{number}{found['end']}"

    return INLINE.sub(told, BLOCK.sub(written, text))


def _cell(cells: Sequence[Cell], row: str, seed: str | None) -> Cell:
    """Return the one cell that a row names, of one seed where that is named."""
    # A label tells rows of one defence apart, of which one may have no more to it than its name.
    by_defence: dict[str, list[Cell]] = {}
    by_label: dict[str, list[Cell]] = {}
    for cell in cells:
        data, attack, _ = key_of(cell)
        setting = cell.setting
        rho = MISSING if setting.rho is None else f"{setting.rho:g}"
        attacks = (attack, f"{attack} {setting.num_samples}", f"{attack} rho {rho}")
        for rows, called in ((by_defence, cell.defence), (by_label, cell.label)):
            for name, defence in product(attacks, (called, f"{setting.model} {called}")):
                rows.setdefault("/".join((data, name, defence)), []).append(cell)
    alone = {
        name: held[0]
        for rows in (by_defence, by_label)
        for name, held in rows.items()
        if len(held) == 1
    }
    if row not in alone:
        raise ValueError(f"a row must be one of {', '.join(alone)}, got {row}. Mend the note.")
    records = alone[row].records
    of_seed = tuple(r for r in records if seed is None or r.seed == int(seed))
    if not of_seed:
        known = ", ".join(str(record.seed) for record in records)
        raise ValueError(f"a seed of {row} must be one of {known}, got {seed}. Mend the note.")
    return replace(alone[row], records=of_seed)


def _number(cell: Cell, name: str, *, with_ends: bool) -> str:
    """Return a metric of a cell as a table would print it, without marks."""
    known = {metric.name: value for metric in METRICS if (value := cell.value(metric.name))}
    if name not in known:
        raise ValueError(
            f"a metric of {cell.label} must be one of {', '.join(known)}, got {name}. "
            "Mend the note."
        )
    decimals = METRIC_BY_NAME[name].decimals
    spread = format_spread(known[name], decimals) if with_ends else ""
    return f"{format_value(known[name], decimals)} {spread}".strip()


def judge_gaps(folders: Sequence[Path]) -> str:
    """Return how far the judge is from the oracle in every attacked run, as histograms.

    From compliance, which is of the same kind as a verdict, and from harm where that is known.
    """
    runs = [r for cell in cells_of(folders) if not cell.is_untouched for r in cell.records]
    means = [{name: e.mean for name in OPPOSED if (e := run.estimate(name))} for run in runs]
    columns = {"compliance": [m["judge_gap"] for m in means if "judge_gap" in m]}
    if any("harm" in m for m in means):
        known = [m for m in means if {"harm", "p_harm_sampled"} <= m.keys()]
        columns["harm"] = [m["p_harm_sampled"] - m["harm"] for m in known]
    edges = (-1.0, -0.5, -0.3, -0.15, -0.05, 0.05, 0.15, 0.3, 0.5, 1.0)
    headings = " | ".join(f"Runs, judge less {name}" for name in columns)
    lines = [f"| Gap | {headings} |", f"| --- | {' | '.join('--:' for _ in columns)} |"]
    for low, high in pairwise(edges):
        last = high == edges[-1]
        nums = [
            sum(low <= gap < high or (last and gap == high) for gap in gaps)
            for gaps in columns.values()
        ]
        bars = " | ".join(f"{num} {'#' * num}".strip() for num in nums)
        lines.append(f"| {low:+.2f} to {high:+.2f} | {bars} |")
    within = [
        f"{sum(abs(gap) <= 0.15 for gap in gaps)} of {len(gaps)} runs from {name}"
        for name, gaps in columns.items()
    ]
    return "\n".join([*lines, "", f"Within 0.15: {', '.join(within)}."])


def labels(folders: Sequence[Path]) -> str:
    """Return what judges say of the sampled answers of attacked models, by what they are."""
    found: dict[str, list[Answer]] = {}
    for folder in folders:
        cells, answers = read_cells(folder)
        for number, held in answers.items():
            for answer in held if cells[number]["attack"] != "none" else ():
                if answer.decoding is Decoding.SAMPLED:
                    found.setdefault(str(answer.label), []).append(answer)
    lines = [
        "| By the oracle | Answers | Harm | Judge | Second judge |",
        "| --- | --: | --: | --: | --: |",
    ]
    for label, told in sorted(found.items(), key=lambda item: -len(item[1])):
        means = [_mean([getattr(answer, name) for answer in told]) for name in INSTRUMENTS]
        lines.append(f"| {label.replace('_', ' ')} | {len(told):,} | {' | '.join(means)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2f}" if known else MISSING


def _rows(metrics: Sequence[str]) -> Callable[[Sequence[Path]], str]:
    return lambda folders: cells_table(cells_of(folders), metrics)


def _side(
    make: Callable[..., SideTable], *, of_groups: bool = False
) -> Callable[[Sequence[Path]], str]:
    def written(folders: Sequence[Path]) -> str:
        if len(folders) > 1:
            names = ", ".join(folder.name for folder in folders)
            raise ValueError(
                f"a table of comparisons must be of one folder, got {names}. Join them with "
                "`rpa-ray evidence FOLDERS --output TO`."
            )
        campaign = read_campaign(folders[0])
        table = make(campaign.groups if of_groups else campaign)
        return side_table_markdown(table).replace("## ", "### ")

    return written


TRUTH = (
    # The few columns that come first: truth, text, the judge and its gap, what it cost.
    *("harm", "harm_greedy", "compliance_sampled", "compliance", "valid"),
    *("p_harm_sampled", "judge_gap", "harmless_answered", "kl_seq_rb", REWARD_GAIN),
)
JUDGES = (
    *("harm", "harm_greedy", "compliance_sampled", "compliance", "refusal_rate"),
    *("p_harm_sampled", "judge_gap", "p_harm_second_sampled", "between_judges", REWARD_GAIN),
)
PRICE = (
    # How soon it fell, and what attack and defence left of the model.
    *("harm", "harm_area", "samples_to_harm_50", "ppl_median"),
    *("helpfulness", "harmless_answered", "kl_seq_rb", "kl_untouched"),
)
OPPOSED = ("judge_gap", "p_harm_sampled", "harm")
INSTRUMENTS = ("harm", "judge", "second_judge")
TABLES: Mapping[str, Callable[[Sequence[Path]], str]] = {
    "truth": _rows(TRUTH),
    "judges": _rows(JUDGES),
    "price": _rows(PRICE),
    "results": lambda folders: cells_table(cells_of(folders)),
    "oracle": lambda folders: oracle_table(cells_of(folders)),
    "paper": lambda folders: rows_table(cells_of(folders)),
    "agreement": lambda folders: agreement_text(cells_of(folders)),
    "differences": _side(differences_table),
    "pairs": _side(pairs_table),
    "best_of_n": _side(best_of_n_table, of_groups=True),
    "judge_gaps": judge_gaps,
    "gap_curves": gap_curves_table,
    "labels": labels,
    "detectors": detectors_table,
    "rewards": rewards_table,
    "oscillation": oscillation_table,
}


if __name__ == "__main__":
    sys.exit(main())
