"""Records of summary.json, and the worst findings of the instrument checks."""

from collections.abc import Sequence
from typing import Any

from rpa_ray.plan.cells import PlannedCell
from rpa_ray.run_folder.outcome import read_outcome, worst_of


def record(cell: PlannedCell) -> dict[str, Any]:
    """Return the summary record of a cell from its run folder."""
    settings = cell.settings
    unfinished: dict[str, Any] = {"status": "failed", "step_failed": None, "metrics": {}}
    outcome = read_outcome(cell.folder) or unfinished
    attacked = settings.attack.name != "none"
    return {
        "model": settings.model.path,
        "world": settings.data.world,
        "data": settings.data.name,
        "attack": settings.attack.name,
        "defence": settings.defence.name,
        "rho": settings.data.rho if attacked else None,
        "num_samples": cell.num_samples,
        "params": cell.params,
        "seed": settings.seed,
        "status": outcome["status"],
        "step_failed": outcome["step_failed"],
        "run": cell.folder.name,
        "weights_sha256": outcome.get("weights_sha256"),
        "metrics": outcome["metrics"],
        "metrics_before": outcome.get("metrics_before") if attacked else None,
    }


def worst_checks(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """Return the worst finding of each instrument check over all cells.

    A reward model must disagree with the labels as they were only where all were reversed.
    """
    found = []
    for cell in cells:
        checks = (read_outcome(cell.folder) or {}).get("checks", {})
        is_reversed = cell.settings.data.rho >= 1
        told = (name for name in checks if is_reversed or not name.startswith("reward_model"))
        found.append({name: checks[name] for name in told})
    return worst_of(found)
