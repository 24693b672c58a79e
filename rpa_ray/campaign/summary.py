"""Records of summary.json, and the worst findings of the instrument checks."""

import math
from collections.abc import Sequence
from typing import Any

from rpa_ray.plan.cells import PlannedCell
from rpa_ray.run_folder.outcome import read_outcome

LOWER_IS_BETTER = ("unflipped_accuracy", "_safe_mean", "brier")
"""How the names of checks end whose worst value is the largest."""


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

    A reward model must disagree with the labels as they were only where all were reversed. A check
    without a value is worse than any.
    """
    worst: dict[str, Any] = {}
    for cell in cells:
        outcome = read_outcome(cell.folder) or {}
        for name, check in outcome.get("checks", {}).items():
            if name.startswith("reward_model") and cell.settings.data.rho < 1:
                continue
            if name not in worst or _goodness(name, check) < _goodness(name, worst[name]):
                worst[name] = check
    return worst


def _goodness(name: str, check: dict[str, Any]) -> float:
    if check["mean"] is None:
        return -math.inf
    sign = -1.0 if name.endswith(LOWER_IS_BETTER) else 1.0
    return sign * float(check["mean"])
