"""What a command says at its end: the table, the best of a sweep, what failed, where files are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rpa_ray.cluster.hardware import NativeDtype, why_dtype
from rpa_ray.config import ExperimentSettings, SweepSettings
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
    for record in records:
        if record["status"] != "ok":
            run = folder / record["run"]
            why = why_failed(run)
            how = f"{record['status']}: {why}" if why else record["status"]
            say(console, f"{record['run']}: {how}, see {run / EVALUATION}", style="yellow")
    say(console, f"results: {folder / SUMMARY}\nreport:  {paths.html}")
    losses = folder / LOSSES
    if losses.is_file():
        say(console, f"ranks that died and were started again: {losses}")


def print_dtypes(
    console: Console,
    errors: Console,
    asked: Sequence[ExperimentSettings],
    typed: Sequence[ExperimentSettings],
    native: NativeDtype | None,
) -> None:
    """Print the types of the weights and why; what a measurement has against them to errors.

    Args:
        console: Where to.
        errors: Where warnings go.
        asked: The cells as they were configured.
        typed: The same with a type in place of ``auto``.
        native: What the hardware computes; None where nobody asked it.
    """
    dtypes = {(one.model.dtype, other.model.dtype) for one, other in zip(asked, typed, strict=True)}
    for wanted, dtype in sorted(dtypes):
        why = why_dtype(wanted, dtype, native)
        say(console, f"weights: {dtype} ({why})")
        doubt = native.doubt(wanted) if native is not None else ""
        if doubt:
            say(errors, doubt, mark="warning", style="yellow")
