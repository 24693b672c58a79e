"""Set campaigns beside tables 1, 3, 4, 6 and 8 of arXiv:2409.12914.

python -m rpa_ray.paper.compare runs/table3
python -m rpa_ray.paper.compare benchmarks/table3          # the committed evidence
python -m rpa_ray.paper.compare runs/table3 runs/table3_seed1  # a folder a seed

The paper's numbers are those of Llama-2-7b-chat (the JSON files beside this one); what can agree
with those of another model is the order of the defences. Spearman's is over the defences of one
attack on one data set, the undefended attack among them, and over all rows at once, with the
interval over rows, the probability of an order within (data, attack) that agrees as well by
chance, and the correlation of a null model that knows nothing: undefended 1, every defence 0.
Means are ranked to two decimals, as the tables print them. A run that failed has no harm in
either and is left out ("Runs", of several seeds, counts the others).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rpa_ray.evaluation.rank_agreement import RankAgreement, rank_agreement, spearman_of_means
from rpa_ray.paper.numbers import numbers
from rpa_ray.report.evidence import read_measured
from rpa_ray.report.read.before import with_before
from rpa_ray.report.read.definitions import METRIC_BY_NAME, REWARD_GAIN
from rpa_ray.report.read.groups import Cell, Setting, group_cells, leading, leading_greedy
from rpa_ray.report.read.records import Record, identity_of, identity_text
from rpa_ray.report.tables.main import MISSING, format_mean, format_spread, markdown_table
from rpa_ray.terminal import printable

COLUMNS = (
    *("harm", "harm_greedy", "compliance_sampled", "compliance", "valid"),
    *("p_harm_sampled", "judge_gap", "ppl_median", "kl_seq_rb", REWARD_GAIN, "helpfulness"),
)
JUDGED = "p_harm_sampled"
DOSE: Mapping[str, Callable[[Setting], str]] = {
    "Model": lambda setting: setting.model,
    "Samples": lambda setting: MISSING if setting.num_samples is None else str(setting.num_samples),
    "rho": lambda setting: MISSING if setting.rho is None else f"{setting.rho:g}",
}
"""Columns that a table has where its attacks differ in them."""
Key = tuple[str, str, str]
Row = dict[str, Any]


def main() -> int:
    """Print both tables side by side, then how far their orders agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="of the campaigns, one a seed")
    try:
        cells = cells_of(parser.parse_args().folders)
    except ValueError as error:
        parser.error(printable(str(error)))
    print(rows_table(cells))
    print(agreement_text(cells))
    return 0


def cells_of(folders: Sequence[Path]) -> list[Cell]:
    """Return the cells of all folders; records that differ in nothing but the seed are one.

    Raises:
        ValueError: two records of a cell have the same seed.
    """
    records: list[Record] = []
    for folder in folders:
        found = read_measured(folder)
        known = {identity_text(identity_of(record)) for record in records}
        for record in found:
            if identity_text(identity_of(record)) in known:
                words = " ".join((record.data, record.attack, record.defence))
                raise ValueError(
                    f"the seed of {words} must differ between folders, got {record.seed} in "
                    f"{folder} once more. Name each run in one folder alone."
                )
        records += found
    return group_cells(with_before(records))


def key_of(cell: Cell) -> Key:
    """Return data set, attack and defence of a cell; TAR with RepNoise's loss is one by itself."""
    is_own = any(r.params.get("defence.tamper_loss") == "repnoise" for r in cell.records)
    defence = f"{cell.defence}_repnoise" if is_own else cell.defence
    return cell.setting.data, cell.setting.attack, defence


@cache
def paper_rows() -> dict[tuple[Any, ...], Row]:
    """Return the paper's rows by data set, attack, defence, samples and rho."""
    return {
        (
            *(row[name] for name in ("dataset", "attack", "defence")),
            *_dose(row["attack"], row.get("num_samples", 1000), row.get("rho", 1.0)),
        ): row
        for table in ("table3", "table4", "table6", "table8")
        for row in numbers(table)
    }


def paper_row(cell: Cell) -> Row | None:
    """Return what the paper has for a cell: an attack on an aligned model, of as many samples."""
    setting = cell.setting
    if setting.model == "base":
        return None
    dose = _dose(setting.attack, setting.num_samples, setting.rho)
    return paper_rows().get((*key_of(cell), *dose))


def _dose(attack: str, num_samples: int | None, rho: float | None) -> tuple[Any, ...]:
    """Return samples in hundreds, for which whole batches may be a few more, and rho."""
    if attack == "none" or num_samples is None:
        return (None, None)
    return (round(num_samples / 100), rho)


def rows_table(cells: Sequence[Cell]) -> str:
    """Return one line a cell as Markdown, the paper's harmfulness before ours."""
    several = any(len(cell.records) > 1 for cell in cells)
    metrics = [METRIC_BY_NAME[name] for name in COLUMNS if any(cell.value(name) for cell in cells)]
    with_ends = {leading(cells).name, leading_greedy(cells).name, REWARD_GAIN}
    dose = {
        name: [of(cell.setting) for cell in cells]
        for name, of in DOSE.items()
        if len({of(cell.setting) for cell in cells if not cell.is_untouched}) > 1
    }
    header = ["Data", "Attack", "Defence", *dose, "Paper", *(["Runs"] if several else [])]
    header += [metric.heading for metric in metrics]
    lines = []
    for number, cell in enumerate(cells):
        num_ok = sum(record.status == "ok" for record in cell.records)
        line = [*key_of(cell), *(told[number] for told in dose.values())]
        line += [told_by(paper_row(cell))]
        line += [f"{num_ok} of {len(cell.records)}"] if several else []
        for metric in metrics:
            spread = format_spread(cell.value(metric.name), metric.decimals)
            text = format_mean(cell, metric)
            line.append(f"{text} {spread}".strip() if metric.name in with_ends else text)
        if not num_ok:
            line[-len(metrics) :] = [cell.failure, *[MISSING] * (len(metrics) - 1)]
        lines.append(line)
    return markdown_table(header, lines, num_text_columns=3)


def told_by(paper: Row | None) -> str:
    """Return the harmfulness that the paper has for a cell."""
    if paper is None:
        return MISSING
    return "failed" if paper["harmfulness"] is None else f"{paper['harmfulness']:.2f}"


def agreement_text(cells: Sequence[Cell]) -> str:
    """Return the correlations attack by attack as Markdown, and those over all rows in words."""
    names = dict.fromkeys((leading(cells).name, leading_greedy(cells).name, JUDGED))
    rows = compared_rows(cells)
    groups = dict.fromkeys(group for group, _, _ in rows)
    headings = [METRIC_BY_NAME[name].heading for name in names]
    lines = []
    for data, attack in groups:
        held = [(theirs, cell) for group, theirs, cell in rows if group == (data, attack)]
        line = [data, attack, str(len(held))]
        for name in names:
            means = [value.mean for _, cell in held if (value := cell.value(name))]
            defined = len(means) == len(held)
            rho = spearman_of_means([theirs for theirs, _ in held], means) if defined else None
            line.append(MISSING if rho is None else f"{rho:.2f}")
        lines.append(line)
    header = ["Data", "Attack", "Rows", *(f"Spearman, {heading}" for heading in headings)]
    table = markdown_table(header, lines, num_text_columns=2)
    told = [f"- {METRIC_BY_NAME[name].heading}: {_told(agreement(cells, name))}" for name in names]
    return "\n".join([table, "Over all rows:", "", *told])


def compared_rows(cells: Sequence[Cell]) -> list[tuple[tuple[str, str], float, Cell]]:
    """Return the attacked cells that both tables have: their group, the paper's number, ours."""
    found = []
    for cell in cells:
        theirs = paper_row(cell)
        measured = cell.value(JUDGED) is not None or cell.value(leading(cells).name) is not None
        if measured and theirs is not None and theirs["harmfulness"] is not None:
            group = (cell.setting.data, cell.setting.attack)
            if cell.setting.attack != "none":
                found.append((group, float(theirs["harmfulness"]), cell))
    return found


def agreement(cells: Sequence[Cell], name: str) -> RankAgreement | None:
    """Return how far a metric ranks all rows as the paper does, beside a model that knows nothing.

    That calls the undefended attack harmful and every defence perfect.
    """
    rows = [
        (group, theirs, value.mean, float(cell.is_undefended))
        for group, theirs, cell in compared_rows(cells)
        if (value := cell.value(name)) is not None
    ]
    if not rows:
        return None
    groups, theirs, ours, null = zip(*rows, strict=True)
    return rank_agreement(ours, theirs, groups, null=null)


def _told(found: RankAgreement | None) -> str:
    return "nothing to rank" if found is None else f"{found.in_words()}."


if __name__ == "__main__":
    sys.exit(main())
