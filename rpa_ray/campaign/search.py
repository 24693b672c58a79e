"""A search on Ray Tune: it asks for one trial after the other, and a scheduler of it stops some.

    points of the plan, then those that follow from results -> trial -> looks -> go on, or stop

Tune's record of a search is made anew whenever it goes on: what was run before is reported again
from its folder, so that searcher and scheduler know of it, and nothing is run twice.
"""

import math
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar

from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from rpa_ray.campaign.growing import Growing
from rpa_ray.campaign.queue import ask
from rpa_ray.campaign.trial import HARM_AT_LOOK, LOOK, RUN, watched_trial
from rpa_ray.config import SweepSettings
from rpa_ray.plan.plan import Plan
from rpa_ray.plan.points import write_points
from rpa_ray.plan.preflight import with_trial
from rpa_ray.run_folder.outcome import read_outcome

RESERVED = {"cpu": 0.0, "memory": 1.0}
"""A trial only waits; Tune wants it to ask for something, and this is one byte."""
HALVING = 2
"""Of ASHA: so many times as many looks as at the last decision, for one in so many trials."""
MIN_OTHERS = 3
"""Trials that have come as far before the median rule stops one."""


def search_tuner(queue: Any, growing: Growing, state: Path) -> tune.Tuner:
    """Return a new record of Tune, in place of an earlier one."""
    plan, sweep = growing.plan, growing.plan.config.sweep
    assert sweep is not None
    waits = tune.with_parameters(watched_trial, queue=queue, output=plan.output.resolve())
    shutil.rmtree(state, ignore_errors=True)
    is_adaptive = sweep.search == "optuna"
    num_looks = max(cell.settings.evaluation.num_looks for cell in plan.cells)
    return tune.Tuner(
        tune.with_resources(waits, RESERVED),
        tune_config=tune.TuneConfig(
            search_alg=NextTrials(queue, growing),
            scheduler=scheduler_of(sweep, num_looks),
            num_samples=len(plan.cells) + plan.config.num_undrawn,
            # One more than can run, so that a group that gets free finds the next cell released;
            # a point that follows from results waits for the last of them.
            max_concurrent_trials=plan.num_at_once + (not is_adaptive),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search", storage_path=str(state), verbose=0, callbacks=[Ending()]
        ),
    )


def scheduler_of(sweep: SweepSettings, num_looks: int) -> TrialScheduler | None:
    """Return what stops trials by their harm at a look; nothing where no scheduler is asked for."""
    seen: dict[str, Any] = {"time_attr": LOOK, "metric": HARM_AT_LOOK, "mode": sweep.mode}
    if sweep.scheduler == "asha":
        return AsyncHyperBandScheduler(
            grace_period=1,
            reduction_factor=HALVING,
            max_t=num_looks + 1,  # at this look it would stop what is at its end
            **seen,
        )
    if sweep.scheduler == "median":
        return MedianStoppingRule(
            grace_period=1,
            min_samples_required=MIN_OTHERS,
            # No trial is put aside for another: ranks hold one at a time.
            min_time_slice=math.inf,  # type: ignore[arg-type]
            **seen,
        )
    return None


class Ending(tune.Callback):
    """Ends Tune's loop between two of its steps; its trials are left as they are, to be resumed.

    Without it Tune would go on in its thread, and call a cluster that is being left.
    """

    asked: ClassVar[threading.Event] = threading.Event()
    """On the class: Tune saves its callbacks, and an event cannot be saved."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raise where the end was asked for."""
        if self.asked.is_set():
            raise RuntimeError("the sweep is ended")


class NextTrials(Searcher):
    """Gives Tune one trial after the other, and tells the ranks what Tune makes of it.

    First those that the plan knows, those done among them, then those that follow from results.
    """

    def __init__(self, queue: Any, growing: Growing) -> None:
        super().__init__()
        self._queue, self._growing = queue, growing
        self._num_given = 0
        self._run_of: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: what a search knows lies in its folder."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the point of the next trial with its run folder."""
        plan = self._growing.plan
        if self._num_given == len(plan.cells):
            plan = self._drawn(plan)
        at = self._num_given
        self._num_given += 1
        self._run_of[trial_id] = plan.cells[at].name
        return {**plan.config.points[at], RUN: plan.cells[at].name}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Have a cell end whose trial was stopped, or run to its end where Tune lost the trial."""
        ask(self._queue, "judge_no_more" if error else "stop", self._run_of.pop(trial_id))

    def _drawn(self, plan: Plan) -> Plan:
        """Return the plan with one trial more, which is written down before it begins."""
        from rpa_ray.campaign.study import next_point

        sweep, config = plan.config.sweep, plan.config
        assert sweep is not None
        outcomes = [read_outcome(cell.folder) for cell in plan.cells]
        longer = with_trial(
            plan, next_point(sweep, list(zip(config.points, outcomes, strict=True)))
        )
        write_points(plan.output, longer.config)
        self._growing.add(longer, self._queue)
        return longer
