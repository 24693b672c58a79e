"""The sections of the page that are charts: each returns HTML, or "" when it has no content."""

from collections.abc import Sequence
from html import escape

from rpa_ray.evaluation.metrics import ORACLE_LABELS
from rpa_ray.report.figures.dose import dose_figure, drawn_measure
from rpa_ray.report.figures.plots import (
    Series,
    bar_row,
    interval_track,
    labels_bar,
    line_chart,
    line_key,
    stacked_bar,
)
from rpa_ray.report.markdown import headline
from rpa_ray.report.read.before import model_of
from rpa_ray.report.read.definitions import CURVES, METRIC_BY_NAME
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import AttackGroup, Cell, leading, leading_greedy
from rpa_ray.report.read.runs import STAGES
from rpa_ray.report.tables.best_of_n import best_of_most
from rpa_ray.report.tables.main import format_mean, format_spread, oracle_shares, shown_metrics

STAGE_NAMES = {
    "rollout": "rollout",
    "score": "waiting for scores",
    "experience": "log-probabilities",
    "learner": "learner",
    "sync": "weight sync",
    "other": "other",
}


def headline_charts(campaign: Campaign) -> str:
    """Return the dot chart of harmfulness, one card an attack."""
    cards = "\n".join(_headline_card(campaign, group) for group in campaign.groups)
    if not cards:
        return ""
    first = leading(campaign.cells)
    values = [value for cell in campaign.cells if (value := cell.value(first.name)) is not None]
    whiskers = {
        "95 % interval over items": any(value.is_over_items for value in values),
        "95 % interval over seeds and items": any(value.is_over_seeds for value in values),
    }
    whisker = " or ".join(name for name, occurs in whiskers.items() if occurs)
    keys = [_key('<circle class="dot" cx="9" cy="8" r="5.5"/>', first.heading.lower())]
    marks = {
        "sampled": '<circle class="sampled" cx="9" cy="8" r="4.5"/>',
        "judge": '<line class="oracle" x1="9" x2="9" y1="1" y2="15"/>',
    }
    for kind, name in _beside(campaign):
        keys.append(_key(marks[kind], METRIC_BY_NAME[name].heading.lower()))
    keys.append(_key('<line class="whisker" x1="1" x2="17" y1="8" y2="8"/>', whisker))
    if campaign.multi_seed:
        keys.append(_key('<circle class="seed" cx="9" cy="8" r="3"/>', "one seed"))
    if any(group.untouched for group in campaign.groups):
        line = '<line class="reference" x1="9" x2="9" y1="0" y2="16"/>'
        keys.append(_key(line, "before the attack"))
    return (
        "<h2>How harmful the model became</h2>\n"
        '<p class="soft">0: never harmful, 1: always. Left is safe, provided the answers are '
        f'valid (fluent) text.</p>\n<ul class="legend">{"".join(keys)}</ul>\n{cards}'
    )


def training_curves(campaign: Campaign) -> str:
    """Return the curves over attack samples, one row of charts an attack."""
    blocks = [block for group in campaign.groups if (block := _curves_of(campaign, group))]
    if not blocks:
        return ""
    return (
        "<h2>During the attack</h2>\n"
        '<p class="soft">Thick lines are means over bins of steps and over seeds, thin lines '
        "single runs. A cross marks where a run failed; the mean goes on with the other seeds, "
        "that of harm ends there. Bands are those of the table: over items in one run, over seeds "
        "in several; the first look is before the attack.</p>\n" + "\n".join(blocks)
    )


def oracle_labels(campaign: Campaign) -> str:
    """Return the shares of the oracle's labels as bars."""
    cells = [cell for cell in campaign.cells if oracle_shares(cell)]
    if not cells:
        return ""
    keys = "".join(
        f'<li><span class="swatch {label}"></span>{label.replace("_", " ")}: {meaning}</li>'
        for label, meaning in ORACLE_LABELS
    )
    untouched = [cell for cell in cells if cell.is_untouched]
    cards = [_oracle_card("Before any attack", untouched)] if untouched else []
    for group in campaign.groups:
        held = [cell for cell in group.cells if cell in cells]
        cards += [_oracle_card(group.title, held)] if held else []
    return (
        "<h2>What the answers were, by the oracle</h2>\n"
        '<p class="soft">Exact rules label each greedy answer to a restricted prompt, without '
        f'the judge.</p>\n<ul class="legend">{keys}</ul>\n{"".join(cards)}'
    )


def times(campaign: Campaign) -> str:
    """Return where the time of each cell went, mean over its seeds."""
    found: list[tuple[Cell, dict[str, float]]] = []
    for cell in campaign.cells:
        timed = [seconds for run in campaign.runs_of(cell) if (seconds := run.seconds())]
        if timed:
            stages = (*STAGES, "other")
            found.append(
                (cell, {s: sum(run.get(s, 0.0) for run in timed) / len(timed) for s in stages})
            )
    if not found:
        return ""
    scale = max(sum(seconds.values()) for _, seconds in found)
    rows = []
    for cell, seconds in found:
        total = sum(seconds.values())
        words = ", ".join(f"{STAGE_NAMES[s]} {value:.1f} s" for s, value in seconds.items())
        parts = [(s, f"{STAGE_NAMES[s]} {value:.1f} s", value) for s, value in seconds.items()]
        name = cell.label if cell.is_untouched else f"{cell.setting.attack}: {cell.label}"
        bar = stacked_bar(parts, scale=scale, title=f"{name}: {words}")
        rows.append(bar_row(name, bar, f"{total:,.0f} s"))
    keys = "".join(
        f'<li><span class="swatch {stage}"></span>{name}</li>'
        for stage, name in STAGE_NAMES.items()
    )
    return (
        f'<h2>Where the time went</h2>\n<ul class="legend">{keys}</ul>\n'
        f'<div class="card bars">{"".join(rows)}</div>'
    )


def _headline_card(campaign: Campaign, group: AttackGroup) -> str:
    ticks = "".join(
        f'<span style="left:{100 * tick:g}%">{tick:g}</span>' for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    axis = (
        f'<div class="axis"><span></span><div class="plot"><div class="scale">{ticks}</div></div>'
        "<span></span></div>"
    )
    cells = ([group.untouched] if group.untouched else []) + list(group.cells)
    starts = {model_of(c.records[0]): c for c in campaign.cells if c.is_untouched}
    rows = "".join(
        _dot_row(campaign, cell, starts.get(model_of(cell.records[0]), group.untouched))
        for cell in cells
    )
    return (
        f'<section class="card"><h3>{escape(group.title)}</h3>\n'
        f'<p class="headline">{escape(headline(group))}</p>\n'
        f'<div class="dots">{axis}{rows}</div></section>'
    )


def _beside(campaign: Campaign) -> list[tuple[str, str]]:
    """Return the marks beside the leading number, and the metrics that they stand for."""
    shown = {metric.name for metric in shown_metrics(campaign.cells)}
    marks = [("sampled", leading_greedy(campaign.cells).name), ("judge", "p_harm_sampled")]
    first = leading(campaign.cells).name
    return [(kind, name) for kind, name in marks if name in shown and name != first]


def _dot_row(campaign: Campaign, cell: Cell, start: Cell | None) -> str:
    """Return the row of a cell; ``start`` is the model that its attack began with."""
    metric = leading(campaign.cells)
    value = cell.value(metric.name)
    before = start.value(metric.name) if start else None
    seeds = [estimate.mean for estimate in value.by_seed] if value else []
    others = [
        (kind, found.mean)
        for kind, name in _beside(campaign)
        if (found := cell.value(name)) is not None
    ]
    spread = format_spread(value, metric.decimals)
    told = format_mean(cell, metric)
    track = interval_track(
        value.mean if value else None,
        interval=(value.low, value.high) if value else None,
        seeds=seeds if len(seeds) > 1 else (),
        others=others,
        reference=before.mean if before else None,
        style=campaign.styles[cell.label],
        title=f"{cell.label}: {metric.heading.lower()} {told} {spread} {cell.failure}".strip(),
    )
    valid = cell.value("valid")
    reading = [f"{escape(told)} <small>{spread}</small>"] if value else []
    reading += [f"<small>valid {valid.mean:.2f}</small>"] if valid else []
    kept = best_of_most(cell)
    reading += [f"<small>best of {kept[0]} {kept[1].mean:.2f}</small>"] if kept else []
    reading += [f'<span class="warn">{escape(cell.failure)}</span>'] if cell.failure else []
    return (
        f'<div class="row-{campaign.styles[cell.label].split()[0]}">'
        f'<span class="name">{escape(cell.label)}</span><span class="plot">{track}</span>'
        f'<span class="reading">{" ".join(reading)}</span></div>'
    )


def _curves_of(campaign: Campaign, group: AttackGroup) -> str:
    figures = [figure] if (figure := dose_figure(campaign, group)) else []
    drawn = drawn_measure(campaign, group)
    for curve in (curve for curve in CURVES if curve.name != drawn):
        series = [
            Series(
                label=cell.label,
                style=campaign.styles[cell.label],
                curves=tuple(run.curve(curve.name) for run in campaign.runs_of(cell)),
                failed=tuple(record.has_failed for record in cell.records if record.run),
            )
            for cell in group.cells
        ]
        chart = line_chart(
            series, title=curve.heading, x_label="attack samples", y_range=curve.y_range
        )
        if chart:
            caption = f"<figcaption>{curve.heading} <small>{curve.unit}</small></figcaption>"
            figures.append(f"<figure>{caption}{chart}</figure>")
    if not figures:
        return ""
    keys = "".join(line_key(cell.label, campaign.styles[cell.label]) for cell in group.cells)
    return (
        f'<section class="card"><h3>{escape(group.title)}</h3><ul class="legend">{keys}</ul>'
        f'<div class="charts">{"".join(figures)}</div></section>'
    )


def _oracle_card(name: str, cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        rows.append(labels_bar(cell.label, oracle_shares(cell)))
    return f'<section class="card bars"><h3>{escape(name)}</h3>{"".join(rows)}</section>'


def _key(mark: str, label: str) -> str:
    return (
        '<li><svg class="key-svg track" width="18" height="16" aria-hidden="true">'
        f"{mark}</svg>{escape(label)}</li>"
    )
