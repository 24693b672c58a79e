"""What came out of a cell, as its run folder tells."""

from pathlib import Path
from typing import Any

from rpa_ray.run_folder.files import read_json
from rpa_ray.run_folder.names import EVALUATION


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """Return what came out of the cell of a run folder, None where nothing has yet."""
    return read_json(folder / EVALUATION)


def outcome_status(folder: Path) -> str:
    """Return how the cell of a run folder ended; ``failed`` where it has not."""
    outcome = read_outcome(folder)
    return "failed" if outcome is None else str(outcome["status"])


def ran_to_an_end(folder: Path) -> bool:
    """Return whether a cell has a result; a policy that broke is one, a failure is not."""
    return outcome_status(folder) != "failed"
