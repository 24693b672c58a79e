"""Charts of a metric with its interval over a setting, as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rpa_ray.report.figures.plots import HEIGHT, WIDTH, Axis, frame, polyline_points, x_at, y_at
from rpa_ray.report.read.values import CellValue

UNIT_AXIS = Axis(low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BandLine:
    """One line of a chart with its interval band."""

    label: str
    style: str
    """CSS classes that set colour and dashes."""
    points: tuple[tuple[float, CellValue], ...]
    """Setting and metric, by ascending setting; only finite intervals are drawn."""


def band_chart(
    lines: Sequence[BandLine],
    *,
    title: str,
    x_label: str,
    x_axis: Axis,
    y_axis: Axis = UNIT_AXIS,
) -> str:
    """Return a chart with a dot at each point; "" when no line has one.

    Args:
        lines: The lines; those without points are left out.
        title: What the vertical axis shows, and the name of the chart for screen readers.
        x_label: What the horizontal axis shows.
        x_axis: Range and scale of the horizontal axis.
        y_axis: Those of the vertical axis; bands are cut off at its ends.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    body = [frame(x_axis, y_axis, x_label)]
    body += [_band(line, x_axis, y_axis) for line in drawn]
    body += [_line(line, x_axis, y_axis) for line in drawn]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(body)}</svg>'
    )


def _band(line: BandLine, x_axis: Axis, y_axis: Axis) -> str:
    known = [
        (x, _ends(v)) for x, v in line.points if math.isfinite(v.low) and math.isfinite(v.high)
    ]
    if not known:
        return ""
    outline = [(x, min(high, y_axis.high)) for x, (_, high) in known]
    outline += [(x, max(low, y_axis.low)) for x, (low, _) in reversed(known)]
    points = polyline_points(tuple(outline), x_axis, y_axis)
    return f'<polygon class="band {escape(line.style)}" points="{points}"/>'


def _ends(value: CellValue) -> tuple[float, float]:
    """Return the interval, wide enough that a few seeds are all in it."""
    seeds = value.seed_range or (value.low, value.high)
    return min(value.low, seeds[0]), max(value.high, seeds[1])


def _line(line: BandLine, x_axis: Axis, y_axis: Axis) -> str:
    style = escape(line.style)
    means = tuple((x, value.mean) for x, value in line.points)
    dots = "".join(
        f'<circle class="end {style}" cx="{x_at(x, x_axis)}" cy="{y_at(y, y_axis)}" r="3"/>'
        for x, y in means
    )
    return (
        f'<g><title>{escape(line.label)}</title><polyline class="mean {style}" '
        f'points="{polyline_points(means, x_axis, y_axis)}"/>{dots}</g>'
    )
