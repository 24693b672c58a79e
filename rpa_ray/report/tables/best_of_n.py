"""Best-of-N: harmfulness of the answer that the attacker keeps, over the number of answers."""

from collections.abc import Sequence
from html import escape

from rpa_ray.evaluation.best_of_n import KEPT
from rpa_ray.evaluation.metrics import ORACLE_LABELS
from rpa_ray.report.figures.bands import BandLine, band_chart
from rpa_ray.report.figures.plots import Axis, labels_bar, line_key
from rpa_ray.report.read.definitions import BEST_OF_N, BEST_OF_N_NAME
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import AttackGroup, Cell
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.side import (
    Column,
    SideTable,
    label_with_failure,
    side_table_html,
    text_column,
)


def best_of_n_table(groups: Sequence[AttackGroup]) -> SideTable:
    """Return one row a cell and one column an N, for the attacks that have such metrics."""
    held = [(group, cell) for group in groups if _sizes(group.cells) for cell in group.cells]
    sizes = _sizes([cell for _, cell in held])
    return SideTable(
        name="best_of_n",
        title="Best of N",
        intro="Harmfulness of the answer that the attacker keeps of N samples, by the reward "
        "model trained on reversed labels; no weights are changed.",
        columns=(
            text_column("Attack", "attack"),
            text_column("Defence", "defence"),
            *(
                Column(
                    heading=f"N = {n}",
                    name=f"harm_best_of_{n}",
                    decimals=BEST_OF_N.decimals,
                    has_interval=True,
                )
                for n in sizes
            ),
        ),
        rows=[
            [group.title, label_with_failure(cell), *(_value(cell, n) for n in sizes)]
            for group, cell in held
        ],
        definitions=(BEST_OF_N,),
    )


def best_of_n_section(campaign: Campaign) -> str:
    """Return the curves over N and their table; "" when no cell has them."""
    cards = "".join(
        _card(campaign, group, sizes) for group in campaign.groups if (sizes := _sizes(group.cells))
    )
    return side_table_html(best_of_n_table(campaign.groups), figures=cards)


def best_of_most(cell: Cell) -> tuple[int, CellValue] | None:
    """Return the largest N and the harmfulness there; None for a cell without such metrics."""
    found = [(n, value) for n in _sizes([cell]) if (value := _value(cell, n)) is not None]
    return found[-1] if found else None


def _card(campaign: Campaign, group: AttackGroup, sizes: Sequence[int]) -> str:
    lines = [
        BandLine(
            label=cell.label,
            style=campaign.styles[cell.label],
            points=tuple(
                (float(n), value) for n in sizes if (value := _value(cell, n)) is not None
            ),
        )
        for cell in group.cells
    ]
    x_axis = Axis(low=sizes[0], high=max(sizes[-1], 2 * sizes[0]), scale="log2")
    chart = band_chart(lines, title="harm of the kept answer", x_label="N", x_axis=x_axis)
    if not chart:
        return ""
    keys = "".join(line_key(line.label, line.style) for line in lines if line.points)
    return (
        f'<section class="card"><h3>{escape(group.title)}</h3><ul class="legend">{keys}</ul>'
        f'<div class="charts"><figure><figcaption>Kept answer <small>harm</small>'
        f"</figcaption>{chart}</figure></div>{_kept(group.cells)}</section>\n"
    )


def _kept(cells: Sequence[Cell]) -> str:
    """Return bars of what the reward model likes best of the whole pool, by the oracle."""
    rows = []
    for cell in cells:
        found = {label: cell.value(f"{KEPT}{label}") for label, _ in ORACLE_LABELS}
        shares = {label: value.mean for label, value in found.items() if value is not None}
        rows += [labels_bar(cell.label, shares)] if shares else []
    if not rows:
        return ""
    return (
        "<h3>What the reward model likes best of the whole pool, by the oracle</h3>"
        f'<div class="bars">{"".join(rows)}</div>'
    )


def _sizes(cells: Sequence[Cell]) -> list[int]:
    """Return every N that some cell was measured with, in ascending order."""
    names = {name for cell in cells for record in cell.records for name in record.metrics}
    return sorted({int(found[1]) for name in names if (found := BEST_OF_N_NAME.fullmatch(name))})


def _value(cell: Cell, n: int) -> CellValue | None:
    """Return the harm of what is kept of N answers: by the oracle, else by the judge."""
    return cell.value(f"harm_best_of_{n}") or cell.value(f"p_harm_best_of_{n}")
