"""The sections of the page that are text and tables; each is "" when it has no content."""

import json
from collections.abc import Sequence
from html import escape

from rpa_ray.report.markdown import explained, explanation, measured_by, notes, title
from rpa_ray.report.read.definitions import CURVES, LEADING, MetricText
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import Cell, leading, left_out
from rpa_ray.report.tables.main import (
    MISSING,
    format_mean,
    format_spread,
    heading_with_num,
    shared_num,
    shown_metrics,
)

MAX_SETTINGS = 100
"""The page holds the configuration and the manifest of at most so many runs, 10 kB each."""


def header(campaign: Campaign) -> str:
    """Return the title, what was done, and how much of it."""
    failed = sum(record.has_failed for record in campaign.records)
    stopped = sum(record.status == "stopped" for record in campaign.records)
    seeds = sorted({record.seed for record in campaign.records})
    facts = [
        ("runs", str(len(campaign.records))),
        ("failed", str(failed)),
        *[("stopped", str(stopped))] * (stopped > 0),
        ("seeds", ", ".join(map(str, seeds))),
    ]
    for name, values in (
        ("model", {record.model for record in campaign.records}),
        ("data", {record.data for record in campaign.records}),
        ("world", {record.world for record in campaign.records if record.world}),
    ):
        if values:
            facts.append((name, ", ".join(sorted(values))))
    facts += measured_by(campaign)
    listed = "".join(f"<li>{name} <b>{escape(value)}</b></li>" for name, value in facts)
    return (
        f"<h1>{escape(title(campaign))}</h1>\n<p>{escape(explanation(campaign))}</p>\n"
        f'<ul class="facts">{listed}</ul>'
    )


def gate(campaign: Campaign) -> str:
    """Return the sanity gate: loud when failed, one line when passed, nothing when not recorded."""
    checks = campaign.gate
    values = ", ".join(
        f"{escape(name.replace('_', ' '))} {_check_text(name, value)}"
        for name, value in checks.values.items()
    )
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in checks.warnings)
    told = f"<p>Sanity checks passed: {values}.</p>" if values else ""
    if checks.problems:
        problems = "".join(f"<li>{escape(problem)}</li>" for problem in checks.problems)
        told = (
            "<p><strong>These numbers mean nothing.</strong> A sanity check failed.</p>"
            f"<ul>{problems}</ul>"
        )
    if warnings:
        heading = "<strong>Where not to believe the judge</strong>"
        told += f'<p class="warn">{heading}</p><ul>{warnings}</ul>'
    kind = 'class="gate bad" role="alert"' if checks.problems else 'class="gate"'
    return f"<div {kind}>{told}</div>" if told else ""


def _check_text(name: str, value: float) -> str:
    return f"{value:,.0f}" if name.endswith(("_rows", "_steps")) else f"{value:.2f}"


def results(campaign: Campaign) -> str:
    """Return the table of all cells; failures are told in words."""
    metrics = shown_metrics(campaign.cells) or [leading(campaign.cells)]
    heads = "".join(
        f'<th scope="col" title="{escape(metric.definition)}">'
        f"{escape(heading_with_num(campaign.cells, metric))}</th>"
        for metric in metrics
    )
    counted = [metric for metric in metrics if not shared_num(campaign.cells, metric)]
    untouched = [cell for cell in campaign.cells if cell.is_untouched]
    bodies = [_table_body("Before any attack", untouched, metrics, counted)] if untouched else []
    bodies += [_table_body(group.title, group.cells, metrics, counted) for group in campaign.groups]
    reading = " ".join(f"{escape(note)}." for note in notes(campaign.cells))
    reading = " ".join(filter(None, (escape(left_out(campaign.cells)), reading)))
    return (
        f'<h2>Results</h2>\n<div class="scroll"><table><thead><tr><th scope="col">Defence</th>'
        f"{heads}</tr></thead>{''.join(bodies)}</table></div>\n"
        f'<p class="notes">{reading} All metrics are in results.csv.</p>'
    )


def definitions(campaign: Campaign) -> str:
    """Return one line on each metric that a table or a curve shows."""
    logged = {name for run in campaign.runs.values() for row in run.steps for name in row}
    shown = [*explained(campaign), *(curve for curve in CURVES if curve.name in logged)]
    if not shown:
        return ""
    rows = "".join(
        f"<tr><td>{escape(text.heading)}</td><td><code>{text.name}</code></td>"
        f"<td>{escape(text.definition)}</td></tr>"
        for text in shown
    )
    return (
        '<h2>What the columns and curves mean</h2>\n<div class="scroll"><table class="text"><tbody>'
        f"{rows}</tbody></table></div>"
    )


def reproduction(campaign: Campaign) -> str:
    """Return the commands that make the results again."""
    commands = escape("\n".join(campaign.commands()))
    return (
        "<h2>Make it again</h2>\n<p>The same configuration and seed give the same run.</p>\n"
        f"<pre>{commands}</pre>"
    )


def settings(campaign: Campaign) -> str:
    """Return the facts, configuration and versions of the first runs, folded."""
    blocks, num_runs = [], 0
    for cell in campaign.cells:
        for record in cell.records:
            run = campaign.runs.get(record.run) if record.run is not None else None
            if run is None or not (run.config_text or run.manifest or run.steps):
                continue
            num_runs += 1
            if num_runs > MAX_SETTINGS:
                continue
            gap = run.largest("sync/logprob_gap")
            facts = [
                ("status", record.status),
                ("reason", str(run.evaluation.get("reason") or MISSING)),
                ("attack samples consumed", _number_text(run.samples_consumed)),
                ("largest gap of log-probabilities, rollout engine to learner", _number_text(gap)),
                ("weights sha256", (record.weights_sha256 or MISSING)[:16]),
            ]
            listed = "".join(f"<li>{name} <b>{escape(text)}</b></li>" for name, text in facts)
            name = f"{cell.setting.attack}: {cell.label}, seed {record.seed}"
            blocks.append(
                f"<details><summary>{escape(name)} <small>{escape(record.run or '')}</small>"
                f'</summary><div class="inside"><ul class="facts">{listed}</ul>'
                f"{_pre('config.yaml', run.config_text)}"
                f"{_pre('manifest.json', _json_text(run.manifest))}</div></details>"
            )
    if not blocks:
        return ""
    return (
        "<h2>Settings and versions</h2>\n<details><summary>Configuration and manifest of "
        f'{_runs_shown(len(blocks), num_runs)}</summary><div class="inside">{"".join(blocks)}'
        "</div></details>"
    )


def _runs_shown(num: int, num_runs: int) -> str:
    rest = f" of {num_runs:,}; those of the others are in their folders"
    return f"{num} runs" + rest * (num < num_runs)


def _table_body(
    name: str,
    cells: Sequence[Cell],
    metrics: Sequence[MetricText],
    counted: Sequence[MetricText],
) -> str:
    rows = [
        f'<tr class="group"><th scope="rowgroup" colspan="{len(metrics) + 1}">'
        f"<span>{escape(name)}</span></th></tr>"
    ]
    for cell in cells:
        kind = "undefended" if cell.is_undefended else "control" if cell.is_control else ""
        pill = (
            f'<span class="pill">{len(cell.records)} seeds</span>' if len(cell.records) > 1 else ""
        )
        pill += '<span class="pill">not moved</span>' if cell.is_unmoved else ""
        row = "".join(_table_cell(cell, metric, with_num=metric in counted) for metric in metrics)
        if cell.failure and not any(cell.value(metric.name) for metric in metrics):
            row = f'<td class="failed" colspan="{len(metrics)}">{escape(cell.failure)}</td>'
        elif cell.failure:
            pill += f' <span class="warn">{escape(cell.failure)}</span>'
        rows.append(f'<tr class="{kind}"><th scope="row">{escape(cell.label)}{pill}</th>{row}</tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _table_cell(cell: Cell, metric: MetricText, *, with_num: bool) -> str:
    value = cell.value(metric.name)
    if value is None:
        return f"<td>{MISSING}</td>"
    counts = ", ".join(str(estimate.n) for estimate in value.by_seed)
    num = f"<small>n {value.num_text}</small>" if with_num else ""
    kind = ' class="harm"' if metric.name in LEADING else ""
    spread = format_spread(value, metric.decimals)
    told = f"{escape(format_mean(cell, metric))}<small>{spread}</small>{num}"
    return f'<td{kind} title="n = {counts}">{told}</td>'


def _pre(name: str, text: str) -> str:
    return f"<h3>{name}</h3><pre>{escape(text)}</pre>" if text else ""


def _json_text(content: object) -> str:
    return json.dumps(content, indent=2, sort_keys=True) if content else ""


def _number_text(number: float | None) -> str:
    return MISSING if number is None else f"{number:,.4g}"
