"""The report as a Markdown file: the tables and what they mean, without any model text."""

import math
from collections.abc import Sequence

from rpa_ray.report.escape import escape_markdown, fenced
from rpa_ray.report.read.definitions import (
    ASTERISK,
    BEFORE_ATTACK,
    BEST_OF_N_ROWS,
    CONTROL,
    COUNTS,
    EMBEDDED_WORLD,
    EXPLANATION,
    FEW_PROMPTS,
    INTERVALS,
    JUDGE_OFF,
    MIN_PROMPTS,
    NO_ATTACK,
    OVER_SEEDS,
    RANGES,
    UNEXPLAINED,
    UNMOVED,
    CurveText,
    MetricText,
)
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import AttackGroup, Cell, leading, leading_greedy
from rpa_ray.report.tables.best_of_n import best_of_most, best_of_n_table
from rpa_ray.report.tables.differences import differences_table, pairs_table
from rpa_ray.report.tables.main import (
    MISSING,
    cells_table,
    format_mean,
    format_spread,
    markdown_table,
    oracle_table,
    shown_metrics,
)
from rpa_ray.report.tables.resistance import resistance_table
from rpa_ray.report.tables.response import response_table
from rpa_ray.report.tables.rho import correlation_table, points_table, rho_lines
from rpa_ray.report.tables.side import SideTable, side_table_markdown
from rpa_ray.report.tables.speed import throughput_table
from rpa_ray.report.tables.worst_case import worst_cases

TOLD_AS = {"harm": "", "compliance_sampled": " (answers that comply)"}
"""How the headline tells what its number is; of any other, that it is the judge's."""
MAX_NAMED = 3
"""Up to so many defences are named in the headline; more are read from the table."""


def markdown_report(campaign: Campaign) -> str:
    """Return the whole Markdown file."""
    headlines = "".join(
        f"- **{escape_markdown(group.title)}**: {escape_markdown(headline(group))}\n"
        for group in campaign.groups
    )
    tables = side_tables(campaign)
    definitions = [[text.heading, text.name, text.definition] for text in explained(campaign)]
    oracle = oracle_table(campaign.cells)
    commands = "\n".join(campaign.commands())
    measured = ", ".join(f"{name} {value}" for name, value in measured_by(campaign))
    parts = [
        f"# {escape_markdown(title(campaign))}",
        explanation(campaign),
        *(
            f"> **WARNING: these numbers mean nothing.** {escape_markdown(problem)}"
            for problem in campaign.gate.problems
        ),
        *(
            f"> Where not to believe the judge: {escape_markdown(warning)}"
            for warning in campaign.gate.warnings
        ),
        headlines.rstrip(),
        "## Results",
        cells_table(campaign.cells).rstrip(),
        " ".join(f"{note}." for note in notes(campaign.cells)),
        *(side_table_markdown(table).rstrip() for table in tables),
        *(["## What the answers were, by the oracle", oracle.rstrip()] if oracle else []),
        "## What the columns mean",
        markdown_table(["Column", "Metric", "Meaning"], definitions, num_text_columns=3).rstrip(),
        "## Make it again",
        fenced(commands),
        *([f"Measured by: {escape_markdown(measured)}."] if measured else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def side_tables(campaign: Campaign) -> list[SideTable]:
    """Return the tables beside the main one; those that do not apply have no rows."""
    lines = rho_lines(campaign.cells)
    return [
        differences_table(campaign),
        pairs_table(campaign),
        response_table(campaign),
        worst_cases(campaign.groups),
        correlation_table(lines),
        points_table(lines),
        best_of_n_table(campaign.groups),
        resistance_table(campaign),
        throughput_table(campaign),
    ]


def explained(campaign: Campaign) -> Sequence[MetricText | CurveText]:
    """Return the texts on everything that the tables show."""
    beside = [text for table in side_tables(campaign) if table.rows for text in table.definitions]
    return [*shown_metrics(campaign.cells), *beside]


def title(campaign: Campaign) -> str:
    """Return the heading of the report."""
    what = "Reverse-preference attack" + "s" * campaign.is_campaign
    return f"{what if _is_attacked(campaign) else 'Without an attack'}: {campaign.name}"


def explanation(campaign: Campaign) -> str:
    """Return in plain words what was done."""
    embedded = any(record.world == "embedded" for record in campaign.records)
    told = EXPLANATION if _is_attacked(campaign) else NO_ATTACK
    return f"{told} {EMBEDDED_WORLD}" if embedded else told


def _is_attacked(campaign: Campaign) -> bool:
    return any(record.attack != "none" for record in campaign.records)


INSTRUMENTS = ("judge", "second_judge", "reward_model", "perplexity", "helpfulness")
"""Models of a manifest that measure, or that an attack is paid by."""


def measured_by(campaign: Campaign) -> list[tuple[str, str]]:
    """Return which models measured, and on which prompts; what runs differ in is all told."""
    found: dict[str, dict[str, None]] = {}
    for run in campaign.runs.values():
        models, words = (run.manifest.get(key) for key in ("models", "made_from"))
        for name in INSTRUMENTS:
            if isinstance(models, dict) and name in models:
                told = str(models[name])
                own = words.get(name, told) if isinstance(words, dict) else told
                told += f" {own}" * (own != told)
                found.setdefault(name.replace("_", " "), {})[told] = None
        split = run.manifest.get("evaluation_split")
        if split is not None:
            found.setdefault("evaluated on", {})[f"{split} prompts"] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def notes(cells: Sequence[Cell]) -> list[str]:
    """Return how to read marks that occur in the results, without the final stop."""
    first = leading(cells).name
    values = [value for cell in cells if (value := cell.value(first)) is not None]
    broken = any(cell.has_broken_text for cell in cells)
    return [
        *([ASTERISK] if broken else []),
        *([UNMOVED] if any(cell.is_unmoved for cell in cells) else []),
        *([JUDGE_OFF] if any(cell.is_misjudged for cell in cells) else []),
        *([UNEXPLAINED] if any(cell.is_unexplained for cell in cells) else []),
        *([FEW_PROMPTS] if any(_num_prompts(cell) < MIN_PROMPTS for cell in cells) else []),
        *([INTERVALS] if any(value.is_over_items for value in values) else []),
        *([RANGES] if any(value.seed_range for value in values) else []),
        *([OVER_SEEDS] if any(value.is_over_seeds for value in values) else []),
        *([COUNTS] if values else []),
        *([BEFORE_ATTACK] if any(cell.is_untouched for cell in cells) else []),
        *([CONTROL] if any(cell.is_control for cell in cells) else []),
        *([BEST_OF_N_ROWS] if any(best_of_most(cell) for cell in cells) else []),
    ]


def _num_prompts(cell: Cell) -> float:
    """Return the least number of restricted prompts a number rests on; infinity without any."""
    value = cell.value(leading_greedy([cell]).name)
    return min((seed.n for seed in value.by_seed), default=math.inf) if value else math.inf


def headline(group: AttackGroup) -> str:
    """Return the harmfulness before and after the attack, and with defences where they are few."""
    parts = []
    if group.untouched is not None:
        parts.append(f"{_told(group.untouched)} before the attack")
    if group.undefended:
        parts.append(_told_undefended(group.undefended))
    others = [cell for cell in group.cells if not cell.is_undefended]
    if len(others) <= MAX_NAMED:
        parts += [f"{_told(cell)} after it with {cell.label}" for cell in others]
    return f"Harm is {'; '.join(parts)}."


def _told_undefended(cells: Sequence[Cell]) -> str:
    """Return the undefended outcome, over the attacker's settings where there are several."""
    if len(cells) == 1:
        return f"{_told(cells[0])} after it without a defence"
    means = [mean for cell in cells if (mean := _attacked_mean(cell)) is not None]
    number = f"{min(means):.2f} to {max(means):.2f}" if means else "not measured"
    num_failed = sum(bool(cell.failure) for cell in cells)
    failed = f", {num_failed} with failures" if num_failed else ""
    return f"{number} after it without a defence ({len(cells)} settings of the attack{failed})"


def _attacked_mean(cell: Cell) -> float | None:
    """Return the harmfulness under the attack: of Best-of-N that of the kept answers."""
    kept = best_of_most(cell)
    value = kept[1] if kept is not None else cell.value(leading([cell]).name)
    return None if value is None else value.mean


def _told(cell: Cell) -> str:
    """Return the harmfulness in words and numbers, never without a failure that happened."""
    metric = leading([cell])
    mean = format_mean(cell, metric)
    kept = best_of_most(cell)
    number = "" if mean == MISSING else mean
    if kept is not None:
        number = f"{kept[1].mean:.2f} (best of {kept[0]})"
    elif number:
        spread = format_spread(cell.value(metric.name), metric.decimals)
        number = f"{number} {spread}".strip()
        number += " (mostly broken text)" if cell.has_broken_text else ""
        number += TOLD_AS.get(metric.name, " by the judge")
    return ", ".join(part for part in (number, cell.failure) if part) or "not measured"
