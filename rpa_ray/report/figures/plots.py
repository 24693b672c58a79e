"""Charts as inline SVG: line charts, interval tracks and stacked bars.

Colours are classes that the page's style sheet resolves, so charts follow light and dark mode.
Every text is escaped here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rpa_ray.report.read.runs import Curve

WIDTH, HEIGHT = 360, 220
"""Size of a line chart in pixels; it is drawn near that size on a phone and on a desk."""
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 36
NUM_BINS = 30
"""Points of a mean line: more steps than that are averaged in bins of equal width."""
WIDE_RANGE = 50.0
"""Ratio of the largest to the median value above which an axis is compressed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart: one defence."""

    label: str
    style: str
    """CSS class that sets colour and dashes."""
    curves: tuple[Curve, ...]
    """One curve a seed."""
    failed: tuple[bool, ...]
    """For each curve whether its run failed; its end is then marked by a cross."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A linear axis, a logarithmic one, or one that is logarithmic away from zero (compressed)."""

    low: float
    """Above 0 on a log2 or log10 axis."""
    high: float
    scale: Literal["linear", "compressed", "log2", "log10"] = "linear"

    def share(self, value: float) -> float:
        """Return where `value` lies between `low` (0) and `high` (1)."""
        low, high, at = (self._warp(number) for number in (self.low, self.high, value))
        return (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values inside the axis."""
        if self.scale == "linear":
            return nice_ticks(self.low, self.high)
        if self.scale in ("log2", "log10"):
            first, last = self._warp(self.low), self._warp(self.high)
            powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
            base = 2.0 if self.scale == "log2" else 10.0
            return [base**power for power in powers]
        tens = [10.0**power for power in range(math.ceil(math.log10(max(self.high, 10))) + 1)]
        candidates = [*(-ten for ten in reversed(tens)), 0.0, *tens]
        return [tick for tick in candidates if self.low <= tick <= self.high]

    def _warp(self, value: float) -> float:
        if self.scale == "log2":
            return math.log2(value)
        if self.scale == "log10":
            return math.log10(value)
        return math.asinh(value) if self.scale == "compressed" else value


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_range: tuple[float, float] | None
) -> str:
    """Return a chart with one thick line (mean) a series and one thin line a seed.

    Args:
        series: The lines; series without points are left out.
        title: What the vertical axis shows, and the name of the chart for screen readers.
        x_label: What the horizontal axis shows.
        y_range: The vertical range; None fits it to the data.
    """
    points = [point for line in series for curve in line.curves for point in curve]
    if not points:
        return ""
    x_axis = Axis(low=0.0, high=max(x for x, _ in points) or 1.0)
    y_axis = Axis(low=y_range[0], high=y_range[1]) if y_range else fit_axis([y for _, y in points])
    body = [frame(x_axis, y_axis, x_label)]
    for line in series:
        body += _thin_lines(line, x_axis, y_axis)
    body += [_mean_line(line, x_axis, y_axis) for line in series if any(line.curves)]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(body)}</svg>'
    )


def fit_axis(values: Sequence[float]) -> Axis:
    """Return an axis around `values`, compressed when a few of them dwarf the rest."""
    low, high = min(values), max(values)
    sizes = sorted(abs(value) for value in values)
    compressed = sizes[-1] > WIDE_RANGE * max(sizes[len(sizes) // 2], 1.0)
    low = min(low, 0.0) if low < 0.3 * high else low
    margin = 0.06 * (high - low) or 0.5
    return Axis(
        low=low - margin * (low < 0.0),
        high=high + margin,
        scale="compressed" if compressed else "linear",
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at most about `count` multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


def binned_mean(curves: Iterable[Curve], high: float, num_bins: int = NUM_BINS) -> Curve:
    """Return the mean of all curves in bins of equal width from 0 to `high` samples consumed."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for x, y in (point for curve in curves for point in curve):
        bins.setdefault(min(int(x / high * num_bins), num_bins - 1), []).append((x, y))
    return tuple(
        (sum(x for x, _ in held) / len(held), sum(y for _, y in held) / len(held))
        for _, held in sorted(bins.items())
    )


def interval_track(
    mean: float | None,
    *,
    interval: tuple[float, float] | None,
    seeds: Sequence[float] = (),
    others: Sequence[tuple[str, float]] = (),
    reference: float | None = None,
    style: str,
    title: str,
) -> str:
    """Return one row of the dot chart on the scale 0 to 1, as wide as its container.

    Args:
        mean: The large dot; None draws an empty row.
        interval: The whisker.
        seeds: Small dots, one a seed.
        others: Further readings as (CSS class, value): "oracle" is a tick, others are rings.
        reference: A dashed line, the model before the attack.
        style: CSS class of the colour.
        title: The row in words, for screen readers and as a tooltip.
    """
    marks = [_rule(tick, "grid") for tick in (0, 0.25, 0.5, 0.75, 1)]
    if reference is not None:
        marks.append(_rule(reference, "reference"))
    if interval and all(map(math.isfinite, interval)):
        low, high = (_percent(end) for end in interval)
        marks.append(f'<line class="whisker" x1="{low}" x2="{high}" y1="17" y2="17"/>')
    marks += [f'<circle class="seed" cx="{_percent(seed)}" cy="17" r="3"/>' for seed in seeds]
    for kind, value in others:
        at = _percent(value)
        marks.append(
            f'<line class="oracle" x1="{at}" x2="{at}" y1="9" y2="25"/>'
            if kind == "oracle"
            else f'<circle class="{escape(kind)}" cx="{at}" cy="17" r="4.5"/>'
        )
    if mean is not None:
        marks.append(f'<circle class="dot" cx="{_percent(mean)}" cy="17" r="6"/>')
    return (
        f'<svg class="track {escape(style)}" width="100%" height="34" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(marks)}</svg>'
    )


def stacked_bar(parts: Sequence[tuple[str, str, float]], *, scale: float, title: str) -> str:
    """Return a horizontal bar of (CSS class, words, amount), `scale` being the full width."""
    drawn, start = [], 0.0
    for style, words, amount in parts:
        share = amount / scale if scale else 0.0
        drawn.append(
            f'<rect class="{escape(style)}" x="{_percent(start)}" width="{_percent(share)}" '
            f'height="20"><title>{escape(words)}</title></rect>'
        )
        start += share
    return (
        f'<svg class="bar" width="100%" height="20" role="img" aria-label="{escape(title)}">'
        f"{''.join(drawn)}</svg>"
    )


def bar_row(name: str, bar: str, amount: str) -> str:
    """Return a bar between its name and what it comes to."""
    return (
        f'<div><span class="name">{escape(name)}</span>{bar}'
        f'<span class="amount">{escape(amount)}</span></div>'
    )


def labels_bar(name: str, shares: Mapping[str, float]) -> str:
    """Return the bar of shares of answers by the oracle's label, with the largest in words."""
    parts = [
        (label, f"{label.replace('_', ' ')} {share:.2f}", share) for label, share in shares.items()
    ]
    words = ", ".join(text for _, text, _ in parts)
    bar = stacked_bar(parts, scale=max(1.0, sum(shares.values())), title=words)
    return bar_row(name, bar, max(parts, key=lambda part: part[2])[1])


def line_key(label: str, style: str) -> str:
    """Return one entry of the legend of a line chart."""
    return (
        f'<li><svg class="key-svg track {escape(style)}" width="26" height="16" aria-hidden="true">'
        f'<line class="mean" x1="1" x2="25" y1="8" y2="8"/></svg>{escape(label)}</li>'
    )


def frame(x_axis: Axis, y_axis: Axis, x_label: str) -> str:
    """Return the grid, the ticks and the name of the horizontal axis."""
    marks = []
    for tick in y_axis.ticks():
        y = y_at(tick, y_axis)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        marks.append(f'<text class="tick" x="{LEFT - 6}" y="{y}" dy="0.32em">{tick:,.6g}</text>')
    base = HEIGHT - BOTTOM
    for tick in x_axis.ticks():
        x = x_at(tick, x_axis)
        marks.append(f'<text class="tick mid" x="{x}" y="{base + 15}">{tick:,.6g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    marks.append(
        f'<text class="tick mid" x="{middle}" y="{HEIGHT - 4}">{escape(x_label)}'
        f"{', compressed scale' if y_axis.scale == 'compressed' else ''}</text>"
    )
    return "".join(marks)


def _thin_lines(line: Series, x_axis: Axis, y_axis: Axis) -> list[str]:
    needed = len(line.curves) > 1 or any(len(curve) > NUM_BINS for curve in line.curves)
    if not needed:
        return []
    return [
        f'<polyline class="thin {escape(line.style)}" '
        f'points="{polyline_points(curve, x_axis, y_axis)}"/>'
        for curve in line.curves
        if curve
    ]


def _mean_line(line: Series, x_axis: Axis, y_axis: Axis) -> str:
    mean = binned_mean(line.curves, x_axis.high)
    style = escape(line.style)
    ends = [] if all(line.failed) else [("circle", mean[-1])]
    ends += [
        ("path", (mean if len(line.curves) == 1 else curve)[-1])
        for curve, failed in zip(line.curves, line.failed, strict=True)
        if curve and failed
    ]
    marks = []
    for kind, (x_value, y_value) in ends:
        x, y = x_at(x_value, x_axis), y_at(y_value, y_axis)
        marks.append(
            f'<circle class="end {style}" cx="{x}" cy="{y}" r="3.5"/>'
            if kind == "circle"
            else f'<path class="cross {style}" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8"/>'
        )
    return (
        f'<g><title>{escape(line.label)}</title><polyline class="mean {style}" '
        f'points="{polyline_points(mean, x_axis, y_axis)}"/>{"".join(marks)}</g>'
    )


def polyline_points(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    """Return a curve as the `points` of an SVG element."""
    return " ".join(f"{x_at(x, x_axis)},{y_at(y, y_axis)}" for x, y in curve)


def x_at(value: float, axis: Axis) -> float:
    """Return the horizontal pixel of a value."""
    return round(LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT), 1)


def y_at(value: float, axis: Axis) -> float:
    """Return the vertical pixel of a value."""
    return round(HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM), 1)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _rule(share: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{_percent(share)}" x2="{_percent(share)}" y1="0" y2="34"/>'
