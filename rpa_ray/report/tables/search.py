"""What a search found: the best so far by number of trials, and all trials over all keys."""

from collections.abc import Sequence
from html import escape

from rpa_ray.config import Distribution, SweepSettings
from rpa_ray.report.figures.plots import Axis
from rpa_ray.report.figures.search import KeyAxis, TrialMark, best_chart, parallel_chart
from rpa_ray.report.read.definitions import METRIC_BY_NAME
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import Cell
from rpa_ray.report.tables.response import (
    distribution_axis,
    response_axis,
    shown_keys,
    stop_of,
    trials_of,
    value_of,
    value_text,
    with_metric,
)


def search_section(campaign: Campaign) -> str:
    """Return the charts of a search; "" for another campaign and for a grid."""
    if campaign.sweep is None or campaign.sweep.search == "grid":
        return ""
    cells = trials_of(campaign)
    sweep = with_metric(campaign.sweep, cells)
    marks = [_mark(campaign, cell, sweep) for cell in cells]
    heading = METRIC_BY_NAME[sweep.metric].heading
    best = best_chart(marks, mode=sweep.mode, title=f"Best {heading} by number of trials")
    lines = parallel_coordinates(cells, marks, sweep)
    figures = [
        f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"
        for caption, chart in (
            (f"Best {heading} so far", best),
            (f"All trials; colour: {heading}", lines),
        )
        if chart
    ]
    if not figures:
        return ""
    stopped = " A cross and a dashed line are the harm at which a trial was stopped: no result."
    told = f"{len(cells)} trials, drawn by {sweep.search} from seed {sweep.seed}."
    told += stopped if any(mark.is_stopped for mark in marks) else ""
    return (
        f'<h2>Search</h2>\n<p class="soft">{escape(told)}</p>\n'
        f'<section class="card"><div class="charts">{"".join(figures)}</div></section>\n'
    )


def parallel_coordinates(
    cells: Sequence[Cell], marks: Sequence[TrialMark], sweep: SweepSettings
) -> str:
    """Return the chart of all trials that have a value over all varied keys."""
    shown = [(c, m) for c, m in zip(cells, marks, strict=True) if m.value is not None]
    keys = [key for key in shown_keys(sweep) if len({_text(c, key, sweep) for c, _ in shown}) > 1]
    if not keys or len(shown) < 2:
        return ""
    axes, columns = [], []
    for key in keys:
        axis = _key_axis([cell for cell, _ in shown], key, sweep)
        axes.append(axis)
        columns.append([_place(cell, key, sweep, axis) for cell, _ in shown])
    values = [mark.value for _, mark in shown if mark.value is not None]
    axes.append(KeyAxis(name=sweep.metric, axis=_between(min(values), max(values))))
    rows = zip(*columns, values, strict=True)
    lines = [(mark, row) for (_, mark), row in zip(shown, rows, strict=True)]
    return parallel_chart(axes, lines, title=f"{sweep.metric} of all trials over {', '.join(keys)}")


def _mark(campaign: Campaign, cell: Cell, sweep: SweepSettings) -> TrialMark:
    label = ", ".join(f"{key} {_text(cell, key, sweep)}" for key in shown_keys(sweep))
    value = cell.value(sweep.metric)
    stop = stop_of(campaign, cell) if value is None else None
    if stop is not None:
        return TrialMark(label=label, value=stop[1], is_stopped=True)
    return TrialMark(label=label, value=None if value is None else value.mean, is_stopped=False)


def _text(cell: Cell, key: str, sweep: SweepSettings) -> str:
    return value_text(cell.records[0], key, sweep)


def _key_axis(cells: Sequence[Cell], key: str, sweep: SweepSettings) -> KeyAxis:
    """Return the axis of a key: logarithmic where its distribution is."""
    name, values = key.rpartition(".")[2], sweep.grid[key]
    if isinstance(values, Distribution):
        return KeyAxis(name=name, axis=distribution_axis(values))
    found = [value_of(cell.records[0], key) for cell in cells]
    numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(found):
        return KeyAxis(name=name, axis=response_axis(numbers))
    options = tuple(dict.fromkeys(_text(cell, key, sweep) for cell in cells))
    return KeyAxis(name=name, axis=Axis(low=0.0, high=len(options) - 1.0), options=options)


def _place(cell: Cell, key: str, sweep: SweepSettings, axis: KeyAxis) -> float:
    """Return where a trial crosses the axis of a key."""
    if axis.options:
        return float(axis.options.index(_text(cell, key, sweep)))
    value = value_of(cell.records[0], key)
    assert isinstance(value, int | float)
    return float(value)


def _between(low: float, high: float) -> Axis:
    return Axis(low=low, high=high) if low < high else Axis(low=low - 0.5, high=high + 0.5)
