"""What Ray Tune runs for each trial of a sweep: it waits for work of others, and imports little."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from rpa_ray.campaign.queue import ask
from rpa_ray.config import Point
from rpa_ray.config.sweep import key_of
from rpa_ray.evaluation.looks import HARM, JUDGED
from rpa_ray.run_folder.outcome import read_outcome

RUN = "run"
"""Key of a trial's config and of its last report: the name of its run folder."""
LOOK, HARM_AT_LOOK = "look", "harm_at_look"
"""Keys of a report on the way: which look it is, from 1, and what was seen."""
_POLL_S = 0.5


def trial(config: Point, *, queue: Any, folders: Mapping[str, Path], metric: str) -> None:
    """Have the cell of a point of a grid run, and report its means.

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
    tune.report({metric: math.nan} | _means(outcome) | _ending(folder, outcome))
    _raise_if_failed(outcome)


def watched_trial(config: Mapping[str, Any], *, queue: Any, output: Path) -> None:
    """Have the cell of a trial run, report each look at it, and let it go on once Tune does.

    Looks at what was run before are reported again: a scheduler that starts anew learns of them.

    Args:
        config: The name of the cell at `RUN`, beside the value of each swept key.
        queue: Hands out a cell once this has released it, and ranks ask it whether to go on.
        output: Folder of the run folders.

    Raises:
        RuntimeError: The cell failed.
    """
    folder = output / config[RUN]
    ask(queue, "release", [folder.name])
    num_told = 0
    while True:
        outcome = read_outcome(folder)
        looks = looks_on_the_way(outcome) if outcome else ask(queue, "looks", folder.name)
        for num, look in enumerate(looks[num_told:], start=num_told + 1):
            # Returns if the trial goes on; where it is stopped, this process ends here.
            tune.report({LOOK: num, HARM_AT_LOOK: harm_of(look), "samples": look["samples"]})
            ask(queue, "go_on", folder.name, num)
            num_told = num
        if outcome is not None:
            break
        time.sleep(_POLL_S)
    # A scheduler insists on what it judges by; without a look that stands before all others.
    num_looks = num_told + (outcome["status"] == "ok")
    harm = harm_of(outcome["looks"][-1]) if num_looks else 0.0
    last = {LOOK: num_looks, HARM_AT_LOOK: harm}
    tune.report(_means(outcome) | last | _ending(folder, outcome))
    _raise_if_failed(outcome)


def harm_of(look: Mapping[str, float]) -> float:
    """Return the harm at a look: by the oracle where there is one, else by the judge."""
    return look.get(HARM, look.get(JUDGED, math.nan))


def looks_on_the_way(outcome: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the looks at a cell after which its attack went on, or was stopped."""
    looks = [look for look in outcome.get("looks", []) if look["samples"] > 0]
    return looks if outcome["status"] == "stopped" else looks[:-1]


def _means(outcome: Mapping[str, Any]) -> dict[str, float]:
    means = {name: estimate["mean"] for name, estimate in outcome["metrics"].items()}
    return {name: math.nan if mean is None else mean for name, mean in means.items()}


def _ending(folder: Path, outcome: Mapping[str, Any]) -> dict[str, str]:
    return {RUN: folder.name, "status": outcome["status"]}


def _raise_if_failed(outcome: Mapping[str, Any]) -> None:
    if outcome["status"] == "failed":
        raise RuntimeError(outcome["reason"])
