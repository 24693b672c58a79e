"""What a command says at its end: the table, the best of a sweep, what failed, where files are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rpa_ray.config import SweepSettings
from rpa_ray.report.html import ReportPaths
from rpa_ray.report.tables.main import terminal_table
from rpa_ray.report.tables.response import best_text
from rpa_ray.run_folder.names import EVALUATION, LOSSES, SUMMARY
from rpa_ray.run_folder.outcome import why_failed
from rpa_ray.terminal import say, show_table


def print_outcome(
    console: Console,
    folder: Path,
    records: Sequence[dict[str, Any]],
    *,
    sweep: SweepSettings | None,
    paths: ReportPaths,
) -> None:
    """Print the end of a campaign.

    Args:
        console: Where to.
        folder: Of the campaign.
        records: Those of its summary.
        sweep: What varied, of a sweep.
        paths: Where the report was written.
    """
    show_table(console, terminal_table(records))
    if sweep is not None:
        say(console, best_text(records, sweep))
    num_stopped = sum(record["status"] == "stopped" for record in records)
    if num_stopped:
        say(console, f"{num_stopped} of {len(records)} trials were stopped at a look")
    for record in records:
        if record["status"] not in ("ok", "stopped"):
            run = folder / record["run"]
            why = why_failed(run)
            how = f"{record['status']}: {why}" if why else record["status"]
            say(console, f"{record['run']}: {how}, see {run / EVALUATION}", style="yellow")
    say(console, f"results: {folder / SUMMARY}\nreport:  {paths.html}")
    losses = folder / LOSSES
    if losses.is_file():
        say(console, f"ranks that died and were started again: {losses}")
