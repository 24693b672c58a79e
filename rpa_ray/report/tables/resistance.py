"""Side table on the constrained view: how long each policy stayed within the limit of its cost."""

from collections.abc import Mapping

from rpa_ray.evaluation import looks
from rpa_ray.report.read.definitions import MULTIPLIER
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import Cell
from rpa_ray.report.read.runs import RunFiles
from rpa_ray.report.tables.side import Column, Entry, SideTable, label_with_failure, text_column

LAST_VALUES = {
    looks.HARM: "Harm at the end",
    looks.JUDGED: "Judge at the end",
    looks.WITHIN_LIMIT: "Prompts within the limit",
    MULTIPLIER: "Multiplier at the end",
}
"""Metrics of the last step that has them, and how they are headed."""


def resistance_table(campaign: Campaign) -> SideTable:
    """Return how many attack samples every trained cell resisted, and where it ended."""
    found = [
        (group.title, cell, runs)
        for group in campaign.groups
        for cell in group.cells
        if (runs := [run for run in campaign.runs_of(cell) if _resistance(run)])
    ]
    shown = [
        name for name in LAST_VALUES if any(run.curve(name) for _, _, runs in found for run in runs)
    ]
    rows: list[list[Entry]] = [
        [
            title,
            label_with_failure(cell),
            _times(runs),
            *(_mean_of_last(runs, name) for name in shown),
        ]
        for title, cell, runs in found
    ]
    return SideTable(
        name="resistance",
        title="Resistance",
        intro="The policy's cost is the mean harm of sampled answers to held-out restricted "
        "prompts, by the oracle or, without one, by the judge. It was looked at during the attack; "
        f"{_limits(found)}> says that it was within the limit at every look, to the end of the "
        "attack or until the run failed: the true number is larger, or there is none because the "
        "policy broke first.",
        columns=(
            text_column("Attack", "attack"),
            text_column("Defence", "defence"),
            text_column("Samples until above the limit", "resistance_samples"),
            *(Column(heading=LAST_VALUES[name], name=name, decimals=2) for name in shown),
        ),
        rows=rows,
    )


def _limits(found: list[tuple[str, Cell, list[RunFiles]]]) -> str:
    limits = sorted({_resistance(run)["limit"] for _, _, runs in found for run in runs}, key=str)
    return f"the limit is {', '.join(f'{limit:g}' for limit in limits)}. " if limits else ""


def _resistance(run: RunFiles) -> Mapping[str, float]:
    """Return what a run recorded, empty where nobody looked, or where the attack was stopped."""
    recorded = run.evaluation.get("resistance")
    if run.evaluation.get("status") == "stopped":
        return {}
    if not isinstance(recorded, dict) or recorded.get("samples") is None:
        return {}
    return recorded


def _times(runs: list[RunFiles]) -> str:
    """Return the samples of every seed."""
    told = [_resistance(run) for run in runs]
    return ", ".join(f"{'> ' if one['held'] else ''}{one['samples']:,.0f}" for one in told)


def _mean_of_last(runs: list[RunFiles], name: str) -> float | None:
    last = [curve[-1][1] for run in runs if (curve := run.curve(name))]
    return sum(last) / len(last) if last else None
