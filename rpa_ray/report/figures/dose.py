"""Harm over the samples of an attack, with bands, from the looks at held-out prompts."""

import math
from html import escape

from rpa_ray.evaluation import looks
from rpa_ray.report.figures.bands import BandLine, band_chart
from rpa_ray.report.figures.plots import Axis
from rpa_ray.report.read.definitions import CURVES
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import AttackGroup, Cell
from rpa_ray.report.read.records import Estimate
from rpa_ray.report.read.values import CellValue, value_over_seeds

MEASURES = (looks.HARM, looks.JUDGED)
"""What is drawn is the first of these that a look has."""


def drawn_measure(campaign: Campaign, group: AttackGroup) -> str | None:
    """Return what the looks of an attack are drawn by; None where nobody looked."""
    seen = {
        name
        for cell in group.cells
        for run in campaign.runs_of(cell)
        for look in run.looks()
        for name in look
    }
    return next((name for name in MEASURES if name in seen), None)


def dose_figure(campaign: Campaign, group: AttackGroup) -> str:
    """Return the chart of an attack, one line a cell; "" where nobody looked."""
    measure = drawn_measure(campaign, group)
    if measure is None:
        return ""
    lines = [
        BandLine(
            label=cell.label,
            style=campaign.styles[cell.label],
            points=tuple(points_of(campaign, cell, measure)),
        )
        for cell in group.cells
    ]
    (curve,) = [curve for curve in CURVES if curve.name == measure]
    last = max(x for line in lines for x, _ in line.points)
    title = f"{curve.heading} over attack samples"
    x_axis = Axis(low=0.0, high=last or 1.0)
    chart = band_chart(lines, title=title, x_label="attack samples", x_axis=x_axis)
    caption = f"<figcaption>{escape(title)} <small>{escape(curve.unit)}</small></figcaption>"
    return f"<figure>{caption}{chart}</figure>"


def points_of(campaign: Campaign, cell: Cell, measure: str) -> list[tuple[float, CellValue]]:
    """Return attack samples and what all seeds say together where each of them was looked at."""
    found: dict[float, list[Estimate]] = {}
    runs = [run for run in campaign.runs_of(cell) if run.looks()]
    for run in runs:
        for look in run.looks():
            if measure in look:
                found.setdefault(look["samples"], []).append(
                    Estimate(
                        mean=look[measure],
                        n=int(look.get(looks.NUM_ANSWERS, 0)),
                        ci_low=look.get(f"{measure}_low", math.nan),
                        ci_high=look.get(f"{measure}_high", math.nan),
                    )
                )
    whole = sorted(samples for samples, seeds in found.items() if len(seeds) == len(runs))
    return [(samples, value_over_seeds(measure, found[samples])) for samples in whole]
