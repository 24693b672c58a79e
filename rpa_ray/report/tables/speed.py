"""How fast each cell trained, as a table."""

from rpa_ray.report.read.definitions import THROUGHPUT
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import Cell
from rpa_ray.report.tables.side import Column, Entry, SideTable, text_column
from rpa_ray.run_folder.throughput import throughput


def throughput_table(campaign: Campaign) -> SideTable:
    """Return rates and shares of step time of every cell that was trained, mean over its seeds."""
    measured = [
        (group.title, cell, _mean_over_seeds(campaign, cell))
        for group in campaign.groups
        for cell in group.cells
    ]
    shown = [
        metric for metric in THROUGHPUT if any(metric.name in found for _, _, found in measured)
    ]
    rows: list[list[Entry]] = [
        [title, cell.label, *(found.get(metric.name) for metric in shown)]
        for title, cell, found in measured
        if found
    ]
    return SideTable(
        name="throughput",
        title="Throughput",
        intro="Rates over the training steps of a run, evaluation and checkpoints left out, and "
        "what these steps spent their time on (shares sum to 1). Runs that went on side by side "
        "on one machine slowed each other down.",
        columns=(
            text_column("Attack", "attack"),
            text_column("Defence", "defence"),
            *(Column(heading=m.heading, name=m.name, decimals=m.decimals) for m in shown),
        ),
        rows=rows,
        definitions=shown,
    )


def _mean_over_seeds(campaign: Campaign, cell: Cell) -> dict[str, float]:
    found = [measured for run in campaign.runs_of(cell) if (measured := throughput(run.steps))]
    names = dict.fromkeys(name for measured in found for name in measured)
    means = {}
    for name in names:
        values = [measured[name] for measured in found if name in measured]
        means[name] = sum(values) / len(values)
    return means
