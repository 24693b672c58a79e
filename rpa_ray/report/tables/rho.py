"""Harmfulness over the share of reversed labels, and how far it follows that share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from rpa_ray.evaluation.rank_agreement import spearman_of_means
from rpa_ray.report.figures.bands import BandLine, band_chart
from rpa_ray.report.figures.plots import Axis, line_key
from rpa_ray.report.read.definitions import METRIC_BY_NAME
from rpa_ray.report.read.folder import NUM_COLOURS, Campaign
from rpa_ray.report.read.groups import (
    Cell,
    Setting,
    attack_name,
    leading,
    leading_greedy,
)
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.best_of_n import best_of_most
from rpa_ray.report.tables.side import (
    Column,
    Entry,
    SideTable,
    label_with_failure,
    metric_column,
    side_table_html,
    text_column,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RhoLine:
    """The cells that differ in nothing but rho (and seed): two or more values of rho."""

    place: str
    """Model, data and size of the attack, in words."""
    attack: str
    cells: tuple[Cell, ...]
    """By ascending rho."""

    def points(self, metric: str) -> list[tuple[float, CellValue]]:
        """Return rho and the metric, for the cells that have it."""
        found = [(cell.setting.rho, cell.value(metric)) for cell in self.cells]
        return [(rho, value) for rho, value in found if rho is not None and value is not None]

    def correlation(self, metric: str) -> float | None:
        """Return the rank correlation of the metric with rho; None where it is not defined."""
        points = self.points(metric)
        return spearman_of_means([rho for rho, _ in points], [v.mean for _, v in points])


def rho_lines(cells: Sequence[Cell]) -> list[RhoLine]:
    """Return one line for each model, data, attack and defence that was run at several rho.

    Best-of-N is left out: it changes no weights, so its rows are the same model at every rho.
    """
    found: dict[tuple[Setting, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.setting.rho is not None and best_of_most(cell) is None:
            key = (replace(cell.setting, rho=None), cell.defence, cell.params)
            found.setdefault(key, []).append(cell)
    return [
        RhoLine(
            place=_place(setting),
            attack=attack_name(setting.attack),
            cells=tuple(sorted(held, key=lambda cell: cell.setting.rho or 0.0)),
        )
        for (setting, _, _), held in found.items()
        if len(held) > 1
    ]


def correlation_table(lines: Sequence[RhoLine]) -> SideTable:
    """Return the rank correlations, one row a line."""
    rows: list[list[Entry]] = []
    for line in lines:
        row: list[Entry] = [line.place, line.attack, line.cells[0].label]
        for metric in _metrics(lines).values():
            row += [line.correlation(metric), len(line.points(metric))]
        rows.append(row)
    return SideTable(
        name="rho_correlation",
        title="Harmfulness over rho",
        intro="How harmful the model became for each share rho of reversed labels, and Spearman's "
        "rank correlation of the two: 1 when more reversed labels always did more harm. It ranks "
        "the means over seeds to two decimals (one of 100 prompts) and needs three points; values "
        "that are all equal have none.",
        columns=(
            *_text_columns(),
            *(
                column
                for decoding, metric in _metrics(lines).items()
                for column in (
                    Column(heading=f"Spearman, {decoding}", name=f"spearman_{metric}", decimals=2),
                    Column(heading=f"Points, {decoding}", name=f"num_{metric}", decimals=0),
                )
            ),
        ),
        rows=rows,
    )


def points_table(lines: Sequence[RhoLine]) -> SideTable:
    """Return the points of the curves, one row a cell."""
    names = dict.fromkeys((*_metrics(lines).values(), "p_harm_sampled", "valid"))
    metrics = [METRIC_BY_NAME[name] for name in names]
    return SideTable(
        name="rho_points",
        title="Harmfulness over rho, each point",
        intro="The cells behind the curves; one that failed is no point of its curve.",
        columns=(
            *_text_columns(),
            Column(heading="rho", name="rho", decimals=2),
            *(metric_column(metric) for metric in metrics),
        ),
        rows=[
            [line.place, line.attack, label_with_failure(cell), cell.setting.rho]
            + [cell.value(metric.name) for metric in metrics]
            for line in lines
            for cell in line.cells
        ],
    )


def rho_section(campaign: Campaign) -> str:
    """Return the curves over rho and their correlations; "" without several rho."""
    lines = rho_lines(campaign.cells)
    places = dict.fromkeys(line.place for line in lines)
    cards = "".join(
        _card(campaign, place, [line for line in lines if line.place == place]) for place in places
    )
    return side_table_html(correlation_table(lines), figures=cards)


def _card(campaign: Campaign, place: str, lines: Sequence[RhoLine]) -> str:
    named = _named_and_styled(campaign, lines)
    figures = ""
    for decoding, metric in _metrics(lines).items():
        bands = [
            BandLine(label=name, style=style, points=tuple(line.points(metric)))
            for line, name, style in named
        ]
        title = f"harmfulness, {decoding} answers"
        chart = band_chart(bands, title=title, x_label="rho", x_axis=Axis(low=0.0, high=1.0))
        if chart:
            figures += (
                f"<figure><figcaption>{decoding.capitalize()} answers <small>{metric}"
                f"</small></figcaption>{chart}</figure>"
            )
    keys = "".join(line_key(name, style) for _, name, style in named)
    return (
        f'<section class="card"><h3>{escape(place)}</h3><ul class="legend">{keys}</ul>'
        f'<div class="charts">{figures}</div></section>\n'
    )


def _named_and_styled(
    campaign: Campaign, lines: Sequence[RhoLine]
) -> list[tuple[RhoLine, str, str]]:
    """Return lines with names and styles; of a single attack, the styles of all other charts."""
    labels = [line.cells[0].label for line in lines]
    if len({line.attack for line in lines}) == 1:
        return [
            (line, label, campaign.styles[label]) for line, label in zip(lines, labels, strict=True)
        ]
    return [
        (
            line,
            f"{line.attack}: {label}",
            f"colour{place % NUM_COLOURS} dash{place // NUM_COLOURS % 4}",
        )
        for place, (line, label) in enumerate(zip(lines, labels, strict=True))
    ]


def _metrics(lines: Sequence[RhoLine]) -> dict[str, str]:
    """Return the names of what leads, by the decoding of the answers it is about."""
    cells = [cell for line in lines for cell in line.cells]
    found = {"sampled": leading(cells).name, "greedy": leading_greedy(cells).name}
    # The judge of greedy answers leads where nothing else was measured.
    return {"greedy": found["greedy"]} if len(set(found.values())) == 1 else found


def _text_columns() -> list[Column]:
    names = (("Model and data", "setting"), ("Attack", "attack"), ("Defence", "defence"))
    return [text_column(heading, name) for heading, name in names]


def _place(setting: Setting) -> str:
    words = [setting.model, setting.data]
    words += [f"world {setting.world}"] if setting.world else []
    words += [f"{setting.num_samples:,} samples"] if setting.num_samples is not None else []
    words += [setting.variant] if setting.variant else []
    return ", ".join(words)
