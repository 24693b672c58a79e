"""What Ray Tune runs for each trial of a sweep: it waits for work of others, and imports little."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from rpa_ray.campaign.queue import ask
from rpa_ray.config import Point
from rpa_ray.run_folder.outcome import read_outcome

_POLL_S = 0.5


def trial(config: Point, *, queue: Any, folders: Mapping[str, Path], metric: str) -> None:
    """Have the cell of a point run, and report its means.

    Args:
        config: Value of each swept key.
        queue: Hands out a cell once this has released it.
        folders: Run folder of each point, by `key_of`; the ranks write the result into it.
        metric: Is reported as not a number where the cell has none: Tune insists on it.

    Raises:
        RuntimeError: The cell failed.
    """
    folder = folders[key_of(config)]
    ask(queue, "release", [folder.name])
    while (outcome := read_outcome(folder)) is None:
        time.sleep(_POLL_S)
    means = {name: estimate["mean"] for name, estimate in outcome["metrics"].items()}
    known = {name: math.nan if mean is None else mean for name, mean in means.items()}
    tune.report({metric: math.nan} | known | {"run": folder.name, "status": outcome["status"]})
    if outcome["status"] == "failed":
        raise RuntimeError(outcome["reason"])


def key_of(point: Point) -> str:
    """Return a text that two points share only if they are the same."""
    return json.dumps(point, sort_keys=True)
