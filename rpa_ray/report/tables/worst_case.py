"""The worst case over an attacker's own settings: a defence is as good as against the best try."""

from collections.abc import Sequence
from dataclasses import replace

from rpa_ray.report.read.comparisons import ATTACKER_PARAMS
from rpa_ray.report.read.definitions import METRIC_BY_NAME, MetricText
from rpa_ray.report.read.groups import AttackGroup, Cell, leading
from rpa_ray.report.read.labels import params_text
from rpa_ray.report.read.starts import SETTING_PARAMS
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.best_of_n import best_of_most
from rpa_ray.report.tables.side import Column, Entry, SideTable, metric_column, text_column

RANKED_BY = ("harm", "compliance_sampled", "harm_fluent")
"""The first of these that there is. Broken text counts as 0 in each, so that a setting that only
destroys the model is not the worst case."""


BESIDE = ("p_harm_sampled", "valid")


def worst_cases(groups: Sequence[AttackGroup]) -> SideTable:
    """Return, for each defence, the attacker's setting that made the model most harmful.

    An attack is listed when some defence met it with several settings; then all its defences are,
    with the number of settings tried. A setting that failed has no numbers: it is counted and
    named. Best-of-N is left out: its settings change no weights, and it has a table of its own.
    """
    rows = []
    first = leading([cell for group in groups for cell in group.cells], RANKED_BY)
    for group in groups:
        if any(best_of_most(cell) for cell in group.cells):
            continue
        tried = _by_defence([cell for cell in group.cells if not cell.has_shuffled_rewards])
        if any(len(cells) > 1 for cells in tried.values()):
            rows += [_row(group.title, defence, cells, first) for defence, cells in tried.items()]
    return SideTable(
        name="worst_case",
        title="Worst case over the attacker's settings",
        intro="Of the settings that an attacker may choose (" + ATTACKER_PARAMS + "*), the one "
        f"with the highest mean of {first.heading}. It is the largest of several noisy means: "
        "its interval is that of the one setting and does not cover the choice, and more settings "
        "tried can only raise it.",
        columns=(
            text_column("Attack", "attack"),
            text_column("Defence", "defence"),
            text_column("Worst setting", "worst_setting"),
            text_column("Failed", "failed"),
            Column(heading="Settings tried", name="num_settings", decimals=0),
            Column(heading="Settings with failures", name="num_failed", decimals=0),
            *(metric_column(METRIC_BY_NAME[name]) for name in (first.name, *BESIDE)),
        ),
        rows=rows,
    )


def _by_defence(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by the label they have without the attacker's settings."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        params = {
            key: value
            for key, value in cell.records[0].params.items()
            if not key.startswith((ATTACKER_PARAMS, *SETTING_PARAMS))
        }
        found.setdefault(replace(cell, params=params_text(params)).label, []).append(cell)
    return found


def _row(title: str, defence: str, cells: Sequence[Cell], first: MetricText) -> list[Entry]:
    measured: list[tuple[CellValue, Cell]] = [
        (value, cell) for cell in cells if (value := cell.value(first.name)) is not None
    ]
    failed = [cell for cell in cells if cell.failure]
    told = "; ".join(f"{_attackers_setting(cell)}: {cell.failure}" for cell in failed)
    counts = (len(cells), len(failed))
    if not measured:
        return [title, defence, None, told, *counts, None, None, None]
    value, worst = max(measured, key=lambda pair: pair[0].mean)
    others = [worst.value(name) for name in BESIDE]
    return [title, defence, _attackers_setting(worst), told, *counts, value, *others]


def _attackers_setting(cell: Cell) -> str:
    """Return the attacker's part of a cell's parameters."""
    params = cell.records[0].params
    return params_text({k: v for k, v in params.items() if k.startswith(ATTACKER_PARAMS)})
