"""From a config to the plan of a command: the type of its weights, every check, what is printed."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from rpa_ray.cluster.hardware import NativeDtype, why_dtype
from rpa_ray.config import ExperimentSettings
from rpa_ray.plan import LoadedConfig, with_native_dtype
from rpa_ray.plan.checks.machine import native_dtype_here
from rpa_ray.plan.plan import Plan
from rpa_ray.plan.points import with_points_of
from rpa_ray.plan.preflight import checked, hub_if_in_reach, planned
from rpa_ray.report.tables.response import require_metric
from rpa_ray.terminal import say


def plan_of(
    loaded: LoadedConfig,
    output: Path | None,
    cache: Path,
    console: Console,
    errors: Console,
    *,
    on_paper: bool,
) -> Plan:
    """Refuse what cannot be; print and return what will be done, or on paper would be.

    Results go to ``output``, by default to ``runs/`` and the name of the config.

    Raises:
        ConfigError: one thing has to change in the config.
        DataError: one thing, in the data.
        Refused: several.
    """
    if loaded.sweep is not None:
        require_metric(loaded.sweep.metric)
    folder = output or Path("runs") / loaded.name
    loaded = with_points_of(folder, loaded)
    asked, native = loaded, native_dtype_here(loaded.campaign)
    if native is not None:
        loaded = with_native_dtype(loaded, native.dtype)
    with hub_if_in_reach(loaded) if on_paper else nullcontext():
        loaded, inputs, unasked = checked(loaded, folder, cache, console, on_paper=on_paper)
        is_open = any(cell.model.dtype == "auto" for cell in loaded.campaign.cells)
        if is_open and native is None and not on_paper:
            from rpa_ray.cluster.session import native_dtype_of_cluster

            native = native_dtype_of_cluster(loaded.campaign.cells[0].cluster)
            loaded = with_native_dtype(loaded, native.dtype)
        plan = planned(loaded, folder, inputs, console, unasked)
    _print_dtypes(console, errors, asked.campaign.cells, loaded.campaign.cells, native)
    return plan


def _print_dtypes(
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
