"""Response of a metric to the settings that a sweep varied, and the best of its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

from rpa_ray.config import ConfigError, Distribution, SweepSettings
from rpa_ray.evaluation.looks import HARM, JUDGED
from rpa_ray.report.figures.bands import UNIT_AXIS, BandLine, band_chart
from rpa_ray.report.figures.plots import Axis, fit_axis, line_key
from rpa_ray.report.read.definitions import LEADING, METRIC_BY_NAME
from rpa_ray.report.read.folder import NUM_COLOURS, Campaign
from rpa_ray.report.read.groups import Cell, attack_groups, group_cells, leading
from rpa_ray.report.read.labels import params_text
from rpa_ray.report.read.records import Record, parse_records
from rpa_ray.report.tables.main import MISSING, format_mean, format_spread
from rpa_ray.report.tables.side import (
    Column,
    Entry,
    SideTable,
    metric_column,
    side_table_html,
    text_column,
)

DRAWN = ("harm", "p_harm_sampled", "valid")
"""Metrics that are drawn beside the one of the sweep, where there are any."""
LISTED = (*DRAWN, "judge_gap", "kl_seq_rb", "ppl_median")
GROUPS = ("attack", "defence", "model", "data")
NAMES = ("name", "path")
"""Keys of a group that are its name."""
CHOICE = " The best is one of several noisy means: its interval does not cover the choice."
DECADE = 10.0
"""Positive values whose largest is more than so many times the least have a logarithmic axis."""


STOPPED = (
    Column(heading="Stopped after samples", name="stopped_samples", decimals=0),
    Column(heading="Harm when stopped", name="stopped_harm", decimals=2),
)
"""Of trials that a scheduler stopped: no metric of theirs, what was seen at their last look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseLine:
    """The trials that differ in nothing but one setting (and the seed)."""

    title: str
    """The attack with its data and size."""
    label: str
    trials: tuple[tuple[float, Cell], ...]
    """The setting and its trial, by ascending setting."""


def require_metric(name: str) -> None:
    """Refuse a metric that the results do not have.

    Raises:
        ConfigError: it is none of the table's.
    """
    if name not in METRIC_BY_NAME:
        known = sorted(METRIC_BY_NAME)
        raise ConfigError("metric", f"name one of {known}", name, "Choose one of those.")


def metrics_of(sweep: SweepSettings) -> tuple[str, ...]:
    """Return the metric of a sweep, for harm with what stands for it where it is not known."""
    is_harm = sweep.metric == LEADING[0]
    return (*LEADING[:2], "harm_fluent") if is_harm else (sweep.metric,)


def best_text(records: Sequence[Mapping[str, object]], sweep: SweepSettings) -> str:
    """Return the best trial in one line.

    Args:
        records: The records of a sweep as `summary.json` holds them.
        sweep: What varied, and the metric that tells the best.
    """
    cells = group_cells(parse_records(records))
    return _best_text(cells, with_metric(sweep, cells))


def response_lines(cells: Sequence[Cell], key: str) -> list[ResponseLine]:
    """Return one line for each set of trials that differ in the setting ``key`` alone."""
    found: dict[object, tuple[Cell, list[tuple[float, Cell]]]] = {}
    for cell in cells:
        value = value_of(cell.records[0], key)
        if isinstance(value, int | float):
            (rest,) = group_cells([_without(record, key) for record in cell.records])
            identity = (rest.setting, rest.defence, rest.params)
            found.setdefault(identity, (rest, []))[1].append((float(value), cell))
    titles = {group.setting: group.title for group in attack_groups([r for r, _ in found.values()])}
    return [
        ResponseLine(
            title=titles.get(rest.setting, rest.setting.model),
            label=rest.label,
            trials=tuple(sorted(trials, key=lambda trial: trial[0])),
        )
        for rest, trials in found.values()
    ]


def response_table(campaign: Campaign) -> SideTable:
    """Return the metrics of each trial beside its values of the swept keys; no rows for no sweep.

    Seeds are no trials of their own here: what differs in its seed alone is one row.
    """
    cells = trials_of(campaign)
    sweep = with_metric(campaign.sweep or SweepSettings(grid={}), cells)
    keys = shown_keys(sweep)
    metrics = [
        METRIC_BY_NAME[name]
        for name in dict.fromkeys((sweep.metric, *LISTED))
        if any(cell.value(name) for cell in cells)
    ]
    stops = [stop_of(campaign, cell) for cell in cells]
    is_stopped = any(stops)
    rows: list[list[Entry]] = [
        [
            *(value_text(cell.records[0], key, sweep) for key in keys),
            "" if stop else cell.failure,
            *(cell.value(metric.name) for metric in metrics),
            *(stop or (None, None)) * is_stopped,
        ]
        for cell, stop in zip(cells, stops, strict=True)
    ]
    return SideTable(
        name="response",
        title=f"Response to {' and '.join(keys) or 'the seed'}",
        intro=f"Every trial of the sweep. {_best_text(cells, sweep)}{CHOICE if cells[1:] else ''}",
        columns=(
            *(text_column(key, key) for key in keys),
            text_column("Failed", "failed"),
            *(metric_column(metric) for metric in metrics),
            *STOPPED * is_stopped,
        ),
        rows=rows,
    )


def response_section(campaign: Campaign) -> str:
    """Return the curves over the first swept number and the table; "" for no sweep."""
    key = None if campaign.sweep is None else _swept_number(campaign.sweep)
    card = ""
    if key is not None and campaign.sweep is not None:
        cells = trials_of(campaign)
        sweep = with_metric(campaign.sweep, cells)
        card = _card(response_lines(cells, key), key, sweep)
    return side_table_html(response_table(campaign), figures=card)


def trials_of(campaign: Campaign) -> list[Cell]:
    """Return the cells of a sweep, without the model before the attack; none for no sweep."""
    return group_cells(campaign.records) if campaign.sweep is not None else []


def with_metric(sweep: SweepSettings, cells: Sequence[Cell]) -> SweepSettings:
    """Return the sweep with a metric that some trial has: harm, else what stands for it."""
    if sweep.metric != LEADING[0] or any(cell.value(sweep.metric) for cell in cells):
        return sweep
    return sweep.model_copy(update={"metric": leading(cells, metrics_of(sweep)).name})


def stop_of(campaign: Campaign, cell: Cell) -> tuple[float, float] | None:
    """Return the samples after which a trial was stopped, and the harm there; None if it was not.

    Of several seeds the first that was stopped.
    """
    for record in cell.records:
        run = campaign.runs.get(record.run or "")
        if record.status == "stopped" and run is not None and run.looks():
            last = run.looks()[-1]
            return last["samples"], last.get(HARM, last.get(JUDGED, float("nan")))
    return None


def response_axis(values: Sequence[float]) -> Axis:
    """Return an axis from the least to the largest value, logarithmic over more than a decade."""
    low, high = min(values), max(values)
    return Axis(low=low, high=high, scale="log10" if 0 < DECADE * low < high else "linear")


def distribution_axis(values: Distribution) -> Axis:
    """Return an axis from end to end, logarithmic where the distribution is."""
    scale: Literal["log10", "linear"] = "log10" if values.scale == "log" else "linear"
    return Axis(low=values.low, high=values.high, scale=scale)


def _card(lines: Sequence[ResponseLine], key: str, sweep: SweepSettings) -> str:
    values = [value for line in lines for value, _ in line.trials]
    is_searched = sweep.search != "grid" and all(len(line.trials) < 2 for line in lines)
    if len(set(values)) < 2 or is_searched:  # points of a search that differ in several keys
        return ""
    titles = list(dict.fromkeys(line.title for line in lines))
    names = [f"{line.title}: {line.label}" if titles[1:] else line.label for line in lines]
    styles = [f"colour{i % NUM_COLOURS} dash{i // NUM_COLOURS % 4}" for i, _ in enumerate(lines)]
    swept = sweep.grid[key]
    x_axis = distribution_axis(swept) if isinstance(swept, Distribution) else response_axis(values)
    figures = "".join(
        _figure(lines, names, styles, name, x_axis, key)
        for name in dict.fromkeys((sweep.metric, *DRAWN))
    )
    keys = "".join(line_key(name, style) for name, style in zip(names, styles, strict=True))
    title = f"<h3>{escape(titles[0])}</h3>" if not titles[1:] else ""
    return (
        f'<section class="card">{title}<ul class="legend">{keys}</ul>'
        f'<div class="charts">{figures}</div></section>\n'
    )


def _figure(
    lines: Sequence[ResponseLine],
    names: Sequence[str],
    styles: Sequence[str],
    metric: str,
    x_axis: Axis,
    key: str,
) -> str:
    bands = [
        BandLine(
            label=name,
            style=style,
            points=tuple((x, value) for x, cell in line.trials if (value := cell.value(metric))),
        )
        for line, name, style in zip(lines, names, styles, strict=True)
    ]
    heights = [value.mean for band in bands for _, value in band.points]
    if not heights:
        return ""
    y_axis = UNIT_AXIS if 0.0 <= min(heights) <= max(heights) <= 1.0 else fit_axis(heights)
    heading = METRIC_BY_NAME[metric].heading
    chart = band_chart(
        bands,
        title=f"{heading} over {key}",
        x_label=key + ", logarithmic" * (x_axis.scale == "log10"),
        x_axis=x_axis,
        y_axis=y_axis,
    )
    caption = f"<figcaption>{escape(heading)} <small>{escape(metric)}</small></figcaption>"
    return f"<figure>{caption}{chart}</figure>"


def _best_text(cells: Sequence[Cell], sweep: SweepSettings) -> str:
    measured = [(value.mean, cell) for cell in cells if (value := cell.value(sweep.metric))]
    order = f"{'largest' if sweep.mode == 'max' else 'least'} {sweep.metric}"
    if not measured:
        return f"No trial has the metric {sweep.metric}."
    choose = max if sweep.mode == "max" else min
    _, best = choose(measured, key=lambda pair: pair[0])
    metric = METRIC_BY_NAME[sweep.metric]
    told = f"{format_mean(best, metric)} {format_spread(best.value(metric.name), metric.decimals)}"
    record = best.records[0]
    setting = ", ".join(f"{key} {value_text(record, key, sweep)}" for key in shown_keys(sweep))
    if not setting:
        num_seeds = sum(seed.estimate(sweep.metric) is not None for seed in best.records)
        return (
            f"The trials differ in their seed alone: {sweep.metric} {told.strip()}, "
            f"measured with {num_seeds} of {len(best.records)} seeds."
        )
    num_trials = sum(len(cell.records) for cell in cells)
    among = f"{num_trials} trials"
    if num_trials > len(cells):
        among = f"{len(cells)} settings in {num_trials} trials"
    text = f"Of {among} the one with the {order}: {setting} ({told.strip()})."
    own, values = best.value(metric.name), [cell.value(metric.name) for _, cell in measured]
    alike = [v for v in values if v and own and v.low <= own.high and own.low <= v.high]
    if len(measured) > 1 and len(alike) == len(measured):
        text += " Within the intervals there is no difference between them."
    return text


def shown_keys(sweep: SweepSettings) -> list[str]:
    """Return the swept keys that tell trials apart: all but the seed."""
    return [key for key in sweep.grid if key != "seed"]


def _swept_number(sweep: SweepSettings) -> str | None:
    """Return the first swept key with several values that are all numbers."""
    for key in shown_keys(sweep):
        values = sweep.options(key)
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values) > 1:
            return key
    return None


def value_of(record: Record, key: str) -> object:
    """Return the setting of a trial; None where it is the same in all."""
    fields: dict[str, object] = {
        "data.rho": record.rho,
        "data.num_samples": record.num_samples,
        "data.name": record.data,
        "data.world": record.world,
        "model.path": record.model,
        "attack.name": record.attack,
        "defence.name": record.defence,
    }
    return fields.get(key, record.params.get(key))


def value_text(record: Record, key: str, sweep: SweepSettings) -> str:
    """Return the setting of a trial in words."""
    own = params_text(_section(record, key, sweep))
    if key in GROUPS:
        name = str(getattr(record, key))
        return f"{name} ({own})" if own else name
    if own:
        return own
    value = value_of(record, key)
    if value is None and len(sweep.options(key)) == 1:
        value = sweep.options(key)[0]
    if value is None:
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(record: Record, key: str, sweep: SweepSettings) -> dict[str, object]:
    """Return what a trial tells of a section of the config that was swept as a whole."""
    listed = {
        f"{key}.{name}": value_of(record, f"{key}.{name}")
        for option in sweep.options(key)
        if isinstance(option, Mapping)
        for name in option
        if name not in NAMES
    }
    told = {name: value for name, value in record.params.items() if name.startswith(f"{key}.")}
    return {
        name: value
        for name, value in (listed | told).items()
        if value is not None and name not in sweep.grid
    }


def _without(record: Record, key: str) -> Record:
    """Return a record that does not tell the setting ``key``."""
    params = {name: value for name, value in record.params.items() if name != key}
    if key == "data.rho":
        return replace(record, rho=None, params=params)
    if key == "data.num_samples":
        return replace(record, num_samples=None, params=params)
    return replace(record, params=params)
