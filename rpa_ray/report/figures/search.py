"""Charts of a search as inline SVG: the best trial so far, and all trials over all keys at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rpa_ray.report.figures.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Axis,
    fit_axis,
    frame,
    polyline_points,
    x_at,
    y_at,
)

MARGIN = 16
"""Pixels between the outer axes of parallel coordinates and the sides, besides ``LEFT``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialMark:
    """One trial of a search, in the order in which they began."""

    label: str
    """Its point in words."""
    value: float | None
    """The metric; of a stopped trial the harm at its last look."""
    is_stopped: bool
    """Whether ``value`` is no result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyAxis:
    """One of the parallel axes: of numbers, or of a few values in words."""

    name: str
    axis: Axis
    options: tuple[str, ...] = ()
    """Values in words, at 0, 1, 2, ... of the axis; none of an axis of numbers."""

    def ticks(self) -> list[tuple[float, str]]:
        """Return where the axis is labelled, and how."""
        if self.options:
            return list(enumerate(self.options))
        powers = self.axis.ticks() if self.axis.scale == "log10" else []
        told = {f"{v:,.3g}": v for v in (self.axis.low, *powers, self.axis.high)}
        return [(value, text) for text, value in told.items()]


def best_chart(trials: Sequence[TrialMark], *, mode: str, title: str) -> str:
    """Return the best metric so far over the number of trials; "" where none has one.

    Each trial is a dot, a stopped one a cross that the best does not count.
    """
    marks = [(n, t) for n, t in enumerate(trials, start=1) if t.value is not None]
    if not any(not trial.is_stopped for _, trial in marks):
        return ""
    values = [trial.value for _, trial in marks if trial.value is not None]
    x_axis = Axis(low=1.0, high=float(max(len(trials), 2)))
    is_share = 0.0 <= min(values) <= max(values) <= 1.0
    y_axis = Axis(low=0.0, high=1.0) if is_share else fit_axis(values)
    choose = max if mode == "max" else min
    best: list[tuple[float, float]] = []
    drawn = []
    for n, trial in marks:
        assert trial.value is not None
        x, y = x_at(n, x_axis), y_at(trial.value, y_axis)
        told = f"<title>{escape(trial.label)}: {trial.value:.3g}"
        if trial.is_stopped:
            drawn.append(
                f'<path class="cross colour1" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6">{told} '
                "at the look where it was stopped</title></path>"
            )
            continue
        drawn.append(f'<circle class="end colour1" cx="{x}" cy="{y}" r="3">{told}</title></circle>')
        before = best[-1][1] if best else trial.value
        best += [(float(n), before), (float(n), choose(before, trial.value))]
    best.append((float(len(trials)), best[-1][1]))
    line = (
        f'<polyline class="mean colour0" points="{polyline_points(tuple(best), x_axis, y_axis)}"/>'
    )
    return _svg(title, [frame(x_axis, y_axis, "trials"), line, *drawn])


def parallel_chart(
    axes: Sequence[KeyAxis],
    lines: Sequence[tuple[TrialMark, Sequence[float]]],
    *,
    title: str,
) -> str:
    """Return parallel coordinates, one line a trial; "" without a line.

    Args:
        axes: From left to right; the last is the metric, whose share of its axis is the colour.
        lines: Trials with their place on each axis; dashed are those that were stopped.
        title: The name of the chart for screen readers.
    """
    if not lines:
        return ""
    width = (WIDTH - LEFT - 2 * MARGIN) / (len(axes) - 1)
    places = [round(LEFT / 2 + MARGIN + i * width, 1) for i, _ in enumerate(axes)]
    body = []
    for i, (x, one) in enumerate(zip(places, axes, strict=True)):
        base = HEIGHT - BOTTOM
        body.append(f'<line class="base" x1="{x}" x2="{x}" y1="{TOP}" y2="{base}"/>')
        body += [
            f'<text class="tick" x="{x - 4}" y="{y_at(value, one.axis)}" dy="0.32em">'
            f"{escape(text)}</text>"
            for value, text in one.ticks()
        ]
        # Names of neighbours stand in two rows: side by side they would overlap.
        body.append(
            f'<text class="tick mid" x="{x}" y="{base + 15 + 14 * (i % 2)}">{escape(one.name)}'
            "</text>"
        )
    for trial, values in lines:
        heights = [y_at(value, one.axis) for value, one in zip(values, axes, strict=True)]
        points = " ".join(f"{x},{y}" for x, y in zip(places, heights, strict=True))
        share = round(100 * axes[-1].axis.share(values[-1]))
        kind = "shaded stopped" if trial.is_stopped else "shaded"
        body.append(
            f'<polyline class="{kind}" style="--share: {share}%" points="{points}">'
            f"<title>{escape(trial.label)}</title></polyline>"
        )
    return _svg(title, body)


def _svg(title: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(body)}</svg>'
    )
