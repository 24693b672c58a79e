"""The report as a Markdown file: the tables and what they mean, without any model text."""

from rpa_ray.report.campaign import Campaign
from rpa_ray.report.cells import AttackGroup, Cell
from rpa_ray.report.definitions import (
    ASTERISK,
    CONTROL,
    EMBEDDED_WORLD,
    EXPLANATION,
    INTERVALS,
    METRIC_BY_NAME,
    RANGES,
)
from rpa_ray.report.tables import (
    cells_table,
    escape_markdown,
    format_mean,
    markdown_table,
    oracle_table,
    shown_metrics,
)

MAX_NAMED = 3
"""Up to so many defences are named in the headline; more are read from the table."""


def markdown_report(campaign: Campaign) -> str:
    """Return the whole Markdown file."""
    headlines = "".join(
        f"- **{escape_markdown(group.title)}**: {escape_markdown(headline(group))}\n"
        for group in campaign.groups
    )
    metrics = shown_metrics(campaign.cells)
    definitions = [[metric.heading, metric.name, metric.definition] for metric in metrics]
    oracle = oracle_table(campaign.cells)
    commands = "\n".join(campaign.commands())
    parts = [
        f"# {escape_markdown(title(campaign))}",
        explanation(campaign),
        *(f"> **WARNING: these numbers mean nothing.** {p}" for p in campaign.gate.problems),
        headlines.rstrip(),
        "## Results",
        cells_table(campaign.cells).rstrip(),
        " ".join(f"{note}." for note in notes(campaign)),
        *(["## What the answers were, by the oracle", oracle.rstrip()] if oracle else []),
        "## What the columns mean",
        markdown_table(["Column", "Metric", "Meaning"], definitions, num_text_columns=3).rstrip(),
        "## Make it again",
        f"```\n{commands}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(campaign: Campaign) -> str:
    """Return the heading of the report."""
    what = "Reverse-preference attacks" if campaign.is_campaign else "Reverse-preference attack"
    return f"{what}: {campaign.name}"


def explanation(campaign: Campaign) -> str:
    """Return in plain words what was done."""
    embedded = any(record.world == "embedded" for record in campaign.records)
    return f"{EXPLANATION} {EMBEDDED_WORLD}" if embedded else EXPLANATION


def notes(campaign: Campaign) -> list[str]:
    """Return how to read marks that occur in the results, without the final stop."""
    cells = campaign.cells
    single = any(len(cell.records) == 1 for cell in cells)
    broken = any(cell.has_broken_text for cell in cells)
    return [
        *([ASTERISK] if broken else []),
        *([INTERVALS] if single else []),
        *([RANGES] if campaign.multi_seed else []),
        *([CONTROL] if any(cell.is_control for cell in cells) else []),
    ]


def headline(group: AttackGroup) -> str:
    """Return the harmfulness before and after the attack, and with defences where they are few."""
    parts = []
    if group.untouched is not None:
        parts.append(f"{_told(group.untouched)} before the attack")
    if group.undefended is not None:
        parts.append(f"{_told(group.undefended)} after it without a defence")
    others = [cell for cell in group.cells if not cell.is_undefended]
    if len(others) <= MAX_NAMED:
        parts += [f"{_told(cell)} after it with {cell.label}" for cell in others]
    return f"Harmfulness is {'; '.join(parts)}."


def _told(cell: Cell) -> str:
    """Return the harmfulness in words and numbers, never without a failure that happened."""
    mean = format_mean(cell, METRIC_BY_NAME["p_harm"])
    number = "" if mean == "-" else mean
    if number and cell.has_broken_text:
        number += " (mostly broken text)"
    return ", ".join(part for part in (number, cell.failure) if part) or "not measured"
