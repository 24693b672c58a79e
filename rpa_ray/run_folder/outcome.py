"""What came out of a cell, as its run folder tells."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rpa_ray.run_folder.files import read_json, write_json
from rpa_ray.run_folder.names import EVALUATION

MAX_CAUSE_CHARS = 200
"""A cause that is longer than this is cut where a line tells it."""
LOWER_IS_BETTER = ("unflipped_accuracy", "_safe_mean", "brier")
"""How the names of checks end whose worst value is the largest."""


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """Return what came out of the cell of a run folder, None where nothing whole has yet."""
    return read_json(folder / EVALUATION, dict)


def outcome_status(folder: Path) -> str:
    """Return how the cell of a run folder ended; ``failed`` where it has not."""
    outcome = read_outcome(folder)
    return "failed" if outcome is None else str(outcome["status"])


def why_failed(folder: Path) -> str:
    """Return in one line why the cell of a run folder broke off; empty where it says none."""
    return cause_of(str((read_outcome(folder) or {}).get("reason") or ""))


def cause_of(text: str) -> str:
    """Return the line of an error's text that names the cause, cut; empty of an empty text.

    That is the first; of a traceback, and of what Ray tells of ranks that died, the last.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    is_last = any(line.startswith(_CAUSE_STANDS_LAST) for line in lines)
    cause = lines[-1] if is_last else lines[0]
    return cause if len(cause) <= MAX_CAUSE_CHARS else f"{cause[:MAX_CAUSE_CHARS]}..."


_CAUSE_STANDS_LAST = ("Traceback (most recent call last)", "A worker health check failed")


def ran_to_an_end(folder: Path) -> bool:
    """Return whether a cell has a result; a policy that broke is one, a failure is not."""
    return outcome_status(folder) != "failed"


def record_weights_left(folder: Path, left: Sequence[Path]) -> None:
    """Write into the outcome of a run where attacked weights of it could not be deleted, if any.

    The key ``attacked_weights_left`` holds the paths; without it there are none.
    """
    outcome = read_outcome(folder)
    assert outcome is not None
    paths = [str(path) for path in left]
    if outcome.pop("attacked_weights_left", []) != paths:
        key = {"attacked_weights_left": paths} if paths else {}
        write_json(folder / EVALUATION, outcome | key)


def worst_of(findings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the worst of several findings of each instrument check, by its name.

    A check without a value is worse than any.
    """
    worst: dict[str, Any] = {}
    for checks in findings:
        for name, check in checks.items():
            if name not in worst or _goodness(name, check) < _goodness(name, worst[name]):
                worst[name] = check
    return worst


def _goodness(name: str, check: Mapping[str, Any]) -> float:
    if check["mean"] is None:
        return -math.inf
    sign = -1.0 if name.endswith(LOWER_IS_BETTER) else 1.0
    return sign * float(check["mean"])
