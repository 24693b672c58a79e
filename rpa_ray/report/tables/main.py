"""Results as tables: Markdown for files and the README, rich for the terminal, CSV for analysis."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rpa_ray.evaluation.metrics import ORACLE_LABELS
from rpa_ray.report.escape import escape_markdown, spreadsheet_text
from rpa_ray.report.read.before import with_before
from rpa_ray.report.read.definitions import METRICS, REWARD_GAIN, MetricText
from rpa_ray.report.read.groups import (
    Cell,
    attack_name,
    group_cells,
    leading,
    left_out,
)
from rpa_ray.report.read.records import Record, parse_records
from rpa_ray.report.read.values import CellValue
from rpa_ray.run_folder.names import short_commit
from rpa_ray.terminal import plain

TERMINAL_HEADINGS = {
    "harm": "Harm",
    "valid": "Valid",
    "p_harm_sampled": "Judge",
    "compliance_sampled": "Complies",
    "harmless_answered": "Harmless",
    "harm_greedy": "Greedy",
}
"""The metrics of the terminal's table beside what leads, with short headings: what is left out
first where it has no room comes last."""
TERMINAL_WIDTH = 78
"""Characters between the edges of a table in a terminal of 80; columns are one apart."""
DEFENCE_WIDTH = 16
"""Characters of the terminal column of defences, whose names may go on on the next line."""
HARM_WIDTH = 20
"""Characters of the terminal column that holds a mean with its interval, or a failure."""
JUDGED = ("p_harm", "p_harm_sampled", "harm_fluent")
"""Metrics that are worth what the judge is."""
MISSING = "-"


def format_mean(cell: Cell, metric: MetricText) -> str:
    """Return the mean as text, with an asterisk where few answers are fluent; "-" when missing."""
    value = cell.value(metric.name)
    if value is None:
        return MISSING
    if metric.name == REWARD_GAIN:
        return f"{gain_word(cell, value)}, {format_value(value, metric.decimals)}"
    mark = "*" if metric.takes_asterisk and cell.has_broken_text else ""
    if metric.name in JUDGED:
        mark += "!" if cell.is_off(metric.name) else "?" if cell.is_unexplained else ""
    return format_value(value, metric.decimals) + mark


def gain_word(cell: Cell, value: CellValue) -> str:
    """Return whether a gain of reward over a frozen model is there: in every seed, or over many."""
    ends = [(seed.ci_low, seed.ci_high) for seed in value.by_seed]
    if value.is_over_seeds:
        ends = [(value.low, value.high)]
    if cell.is_unmoved or all(high <= 0 for _, high in ends):
        return "no"
    return "yes" if all(low > 0 for low, _ in ends) else "not shown"


def format_value(value: CellValue, decimals: int) -> str:
    """Return a mean without its spread, as `> 1,000` where it is only known to be larger."""
    return f"{'> ' if value.is_censored else ''}{value.mean:,.{decimals}f}"


def format_spread(value: CellValue | None, decimals: int) -> str:
    """Return the spread of a mean, "" where it is not known.

    `[low, high]` is the interval over items within these seeds, with `(least to largest)` of a few
    seeds behind it; `{low, high}` the interval over many seeds and items. An interval without an
    upper end has "-" there.
    """
    if value is None or value.is_censored:
        return ""
    told = []
    if math.isfinite(value.low):
        low, high = f"{value.low:,.{decimals}f}", f"{value.high:,.{decimals}f}"
        if not math.isfinite(value.high):
            high = MISSING
        told.append(f"{{{low}, {high}}}" if value.is_over_seeds else f"[{low}, {high}]")
    if value.seed_range is not None:
        least, largest = value.seed_range
        told.append(f"({least:,.{decimals}f} to {largest:,.{decimals}f})")
    return " ".join(told)


def shown_metrics(cells: Sequence[Cell]) -> list[MetricText]:
    """Return the known metrics that at least one cell has: what leads, then in the usual order."""
    found = [metric for metric in METRICS if any(cell.value(metric.name) for cell in cells)]
    if any(cell.value("judge_gap") for cell in cells):
        # With an oracle a judge is held to the truth, not to another judge.
        found = [metric for metric in found if metric.name != "between_judges"]
    first = leading(cells)
    return [first, *(metric for metric in found if metric != first)] if first in found else found


def shared_num(cells: Sequence[Cell], metric: MetricText) -> str:
    """Return the number of answers that a metric rests on in every cell; "" where they differ."""
    values = [value for cell in cells if (value := cell.value(metric.name)) is not None]
    counts = {value.num_text for value in values}
    return counts.pop() if len(counts) == 1 else ""


def heading_with_num(cells: Sequence[Cell], metric: MetricText) -> str:
    """Return the heading of a metric, with the number of answers where it is one for all cells."""
    num = shared_num(cells, metric)
    return f"{metric.heading} (n {num})" if num else metric.heading


def results_table(records: Sequence[Mapping[str, object]]) -> str:
    """Return the results as a Markdown table, one row a cell, under a line with what rows share.

    Harmfulness stands beside the share of fluent answers. A failed run is told in words and has
    no numbers. Settings that are the same in every attack are told once, above the table.

    Args:
        records: The records of a campaign as `summary.json` holds them.

    Raises:
        ValueError: when a record is not what a campaign writes.
    """
    return cells_table(group_cells(with_before(parse_records(records))))


def cells_table(cells: Sequence[Cell], names: Sequence[str] | None = None) -> str:
    """Return the Markdown table of `results_table`; where metrics are named, with these alone."""
    metrics = [m for m in shown_metrics(cells) if names is None or m.name in names]
    shared, columns = _settings(cells)
    multi_seed = any(len(cell.records) > 1 for cell in cells)
    header = [*columns, "Attack", "Defence", *(["Seeds"] if multi_seed else [])]
    header += [heading_with_num(cells, metric) for metric in metrics] or ["Harm"]
    counted = [metric for metric in metrics if not shared_num(cells, metric)]
    rows = []
    for cell in cells:
        settings = _setting_texts(cell)
        row = [settings[column] for column in columns]
        moved = f"{cell.label}, not moved" if cell.is_unmoved else cell.label
        row += [attack_name(cell.setting.attack), moved]
        row += [_seeds_text(cell)] if multi_seed else []
        rows.append([*row, *_metric_texts(cell, metrics, counted)])
    num_text = len(columns) + 2
    table = markdown_table(header, rows, num_text_columns=num_text)
    told = [f"All attacks: {escape_markdown(shared)}."] if shared else []
    told += [escape_markdown(text)] if (text := left_out(cells)) else []
    return "\n\n".join([" ".join(told), table]) if told else table


def oracle_table(all_cells: Sequence[Cell]) -> str:
    """Return the shares of the oracle's labels as Markdown; empty when none was measured."""
    cells = [cell for cell in all_cells if oracle_shares(cell)]
    rows = [
        [attack_name(cell.setting.attack), cell.label]
        + [f"{shares[label]:.2f}" if label in shares else MISSING for label, _ in ORACLE_LABELS]
        for cell in cells
        for shares in [oracle_shares(cell)]
    ]
    header = ["Attack", "Defence", *(label.replace("_", " ") for label, _ in ORACLE_LABELS)]
    return markdown_table(header, rows, num_text_columns=2) if rows else ""


def oracle_shares(cell: Cell) -> dict[str, float]:
    """Return the mean share of each oracle label; empty when the oracle was not run."""
    values = {label: cell.value(f"oracle_{label}") for label, _ in ORACLE_LABELS}
    return {label: value.mean for label, value in values.items() if value is not None}


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int
) -> str:
    """Return a Markdown table whose first columns are left-aligned and the others right-aligned."""
    rule = ["---" if place < num_text_columns else "--:" for place in range(len(header))]
    lines = [header, rule, *rows]
    return "".join(f"| {' | '.join(map(escape_markdown, line))} |\n" for line in lines)


def terminal_table(records: Sequence[Mapping[str, object]]) -> Table:
    """Return the main columns of the results for a terminal of 80 characters.

    Args:
        records: The records of a campaign as `summary.json` holds them.

    Raises:
        ValueError: when a record is not what a campaign writes.
    """
    cells = group_cells(with_before(parse_records(records)))
    shared, columns = _settings(cells)
    first = leading(cells)
    metrics = _with_room(cells, columns)
    counts = _counts_text(cells, metrics)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
        caption=plain("\n".join(filter(None, (shared, left_out(cells), counts)))),
        caption_justify="left",
    )
    for column in (*columns, "Attack", "Defence"):
        table.add_column(column, overflow="fold")
    numbers = [_metric_texts(cell, metrics) for cell in cells]
    for place, metric in enumerate(metrics):
        longest = max([len(_short(metric)), *(len(texts[place]) for texts in numbers)])
        width = min(HARM_WIDTH, longest) if metric == first else None
        table.add_column(_short(metric), justify="right", width=width, no_wrap=width is None)
    if not metrics:
        table.add_column("Harm")
    for cell, own in zip(cells, numbers, strict=True):
        settings = _setting_texts(cell)
        texts = [settings[column] for column in columns]
        texts += [attack_name(cell.setting.attack), cell.label, *own]
        style = "dim" if cell.is_control else "red" if cell.failure else ""
        table.add_row(*map(plain, texts), style=style)
    return table


def _with_room(cells: Sequence[Cell], columns: Sequence[str]) -> list[MetricText]:
    """Return the metrics of the terminal's table that have room beside the settings that differ."""
    first = leading(cells)
    shown = shown_metrics(cells)
    room = TERMINAL_WIDTH - 1 - DEFENCE_WIDTH - 1 - HARM_WIDTH
    for column in columns:
        room -= 1 + max(len(column), *(len(_setting_texts(cell)[column]) for cell in cells))
    room -= 1 + max(len("Attack"), *(len(attack_name(cell.setting.attack)) for cell in cells))
    fitting = [first]
    for name in TERMINAL_HEADINGS:
        found = [metric for metric in shown if metric.name == name and metric != first]
        for metric in found:
            texts = [format_mean(cell, metric) for cell in cells]
            room -= 1 + max(len(_short(metric)), *map(len, texts))
            fitting += [metric] if room >= 0 else []
    return [metric for metric in shown if metric in fitting]


def _short(metric: MetricText) -> str:
    return TERMINAL_HEADINGS.get(metric.name, metric.heading)


def _counts_text(cells: Sequence[Cell], metrics: Sequence[MetricText]) -> str:
    """Return how many answers the numbers rest on, as `n: 400 (Harm, Judge), 100 (Valid)`."""
    named: dict[str, list[str]] = {}
    for metric in metrics:
        values = [value for cell in cells if (value := cell.value(metric.name)) is not None]
        counts = sorted({seed.n for value in values for seed in value.by_seed})
        told = " to ".join(f"{n:,}" for n in dict.fromkeys(counts[:1] + counts[-1:]))
        named.setdefault(told, []).append(_short(metric))
    if len(named) == 1:
        return f"n {next(iter(named))}"
    told_each = (f"{told} ({', '.join(names)})" for told, names in named.items())
    return f"n: {', '.join(told_each)}" if named else ""


def results_csv(records: Sequence[Record]) -> str:
    """Return one CSV row a record, with metrics that the tables do not know as well.

    A metric has four columns: `name`, `name_n`, `name_ci_low`, `name_ci_high`. They are empty for
    a failed run. Where a run ended before it saw the number, only its ends are there.
    """
    identity = ("model", "world", "data", "attack", "defence", "rho", "num_samples", "seed")
    outcome = ("status", "step_failed", "run", "weights_sha256")
    names = sorted({name for record in records for name in record.metrics})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    suffixes = ("", "_n", "_ci_low", "_ci_high")
    header = [*identity, "params", *outcome, *(n + s for n in names for s in suffixes)]
    writer.writerow(map(spreadsheet_text, header))
    for record in records:
        row: list[object] = [getattr(record, field) for field in identity]
        row.append(json.dumps(dict(record.params), sort_keys=True))
        row += [getattr(record, field) for field in outcome]
        for name in names:
            found = record.estimate(name)
            numbers = (found.mean, found.n, found.ci_low, found.ci_high) if found else ("",) * 4
            row += ["" if number != number else number for number in numbers]
        writer.writerow(map(spreadsheet_text, row))
    return file.getvalue()


def _metric_texts(
    cell: Cell, metrics: Sequence[MetricText], counted: Sequence[MetricText] = ()
) -> list[str]:
    """Return a row's numbers: the first and the gain with their spread, the failure in words.

    Those of metrics in `counted` say how many answers they rest on.
    """
    texts: list[str] = []
    for metric in metrics:
        text, value = format_mean(cell, metric), cell.value(metric.name)
        if not texts or metric.name == REWARD_GAIN:
            text = f"{text} {format_spread(value, metric.decimals)}".strip()
        texts.append(f"{text} (n {value.num_text})" if value and metric in counted else text)
    if cell.failure:
        first = "" if not texts or texts[0] == MISSING else f"{texts[0]}; "
        texts[:1] = [first + cell.failure]
    return texts or [MISSING]


def _seeds_text(cell: Cell) -> str:
    return str(len(cell.records))


def _setting_texts(cell: Cell) -> dict[str, str]:
    """Return the settings that may become columns, by heading."""
    setting = cell.setting
    return {
        "Model": short_commit(setting.model),
        "World": setting.world or MISSING,
        "Data": setting.data,
        "rho": MISSING if setting.rho is None else f"{setting.rho:g}",
        "Samples": MISSING if setting.num_samples is None else f"{setting.num_samples:,}",
        "Setting": setting.variant or MISSING,
    }


def _settings(cells: Sequence[Cell]) -> tuple[str, list[str]]:
    """Return what all attacked rows share, in words, and the headings of what differs."""
    compared = [cell for cell in cells if not cell.is_untouched] or list(cells)
    texts = [_setting_texts(cell) for cell in compared]
    columns = [name for name in texts[0] if len({row[name] for row in texts}) > 1] if texts else []
    order = ("Model", "World", "Data", "rho", "Samples", "Setting")
    shared = [
        f"{name if name == 'rho' else name.lower()} {texts[0][name]}"
        for name in (order if texts else ())
        if name not in columns and texts[0][name] != MISSING
    ]
    return ", ".join(shared), [name for name in order if name in columns]
