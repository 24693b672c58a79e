"""A sweep: Ray Tune says which cell of a campaign begins next, and keeps the record of its trials.

    trial of Tune: release its cell -> a warm group of ranks runs it -> report what was measured

Ranks and workers are the campaign's: a trial starts none, so that the next begins within seconds.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ray import tune

from rpa_ray.campaign.queue import ask
from rpa_ray.campaign.run import View, run_campaign
from rpa_ray.campaign.trial import key_of, trial
from rpa_ray.config import SweepSettings
from rpa_ray.plan.cells import PlannedCell
from rpa_ray.plan.plan import Plan
from rpa_ray.run_folder.outcome import ran_to_an_end

STATE = "tune"
"""Folder of Tune's own record, in the folder of the sweep."""
_END_WAIT_S = 15.0
_RESERVED = {"cpu": 0.0, "memory": 1.0}
"""A trial only waits; Tune wants it to ask for something, and this is one byte."""


def run_sweep(plan: Plan, *, view: View, command: str, resume: bool) -> list[dict[str, Any]]:
    """Run the trials that are not done yet; return the summary's records.

    The folder is that of a campaign, and a trial that was run to an end is read back, whatever
    Tune knows of it. With ``resume`` Tune's own record of an interrupted sweep is continued, where
    there is one of the same trials.

    Raises:
        CampaignFailed: Ranks could not be kept at work, or Tune failed; finished trials are kept.
        FolderInUse: Another run writes to the same folder.
    """
    sweep = plan.config.sweep
    assert sweep is not None
    state = plan.output.resolve() / STATE
    return run_campaign(
        plan,
        view=view,
        command=command,
        releases=lambda queue, num_groups: Trials(
            queue, sweep, plan.cells, state=state, resume=resume, num_groups=num_groups
        ),
    )


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


class Trials:
    """Tune at work in a thread of the driver, beside the groups that run what it releases."""

    def __init__(
        self,
        queue: Any,
        sweep: SweepSettings,
        cells: Sequence[PlannedCell],
        *,
        state: Path,
        resume: bool,
        num_groups: int,
    ) -> None:
        """Start; cells in the order of the sweep's points."""
        self._queue = queue
        self._sweep = sweep
        self._folders = {
            key_of(point): cell.folder.resolve()
            for point, cell in zip(sweep.points(), cells, strict=True)
        }
        self._state = state
        self._resume = resume
        self._num_groups = num_groups
        self.error: Exception | None = None
        Ending.asked.clear()
        self._thread = threading.Thread(target=self._run, name="tune", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether Tune is still at work."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Have Tune end where it stands, and wait for that."""
        Ending.asked.set()
        self._thread.join(_END_WAIT_S)

    def _run(self) -> None:
        try:
            _set_tune_environment()
            self._tuner().fit()
            # A trial that died has released nothing, and ranks would wait for ever.
            names = [folder.name for folder in self._folders.values()]
            ask(self._queue, "release", names)
        except Exception as error:
            self.error = error

    def _tuner(self) -> tune.Tuner:
        """Return Tune's record of these trials where there is one to continue, or a new one."""
        waits = tune.with_parameters(
            trial, queue=self._queue, folders=self._folders, metric=self._sweep.metric
        )
        trainable = tune.with_resources(waits, _RESERVED)
        names = [folder.name for folder in self._folders.values()]
        what = json.dumps([names, self._sweep.metric, self._sweep.mode])
        name = hashlib.sha256(what.encode()).hexdigest()[:12]
        folder = str(self._state / name)
        if self._resume and tune.Tuner.can_restore(folder):
            tuner = tune.Tuner.restore(folder, trainable=trainable, restart_errored=True)
            if all(ran_to_an_end(self._folders[key]) for key in _finished(tuner)):
                return tuner
        shutil.rmtree(self._state, ignore_errors=True)
        return tune.Tuner(
            trainable,
            param_space={key: tune.grid_search(v) for key, v in self._sweep.grid.items()},
            tune_config=tune.TuneConfig(
                metric=self._sweep.metric,
                mode=self._sweep.mode,
                # One more than can run: a group that gets free finds the next cell released.
                max_concurrent_trials=self._num_groups + 1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name, storage_path=str(self._state), verbose=0, callbacks=[Ending()]
            ),
        )


def _finished(tuner: tune.Tuner) -> list[str]:
    """Return which trials Tune will not run again."""
    results = tuner.get_results()
    return [
        key_of(result.config or {})
        for result in (results[i] for i in range(len(results)))
        if result.error is None and result.metrics is not None and "status" in result.metrics
    ]


def _set_tune_environment() -> None:
    """Have Tune leave the terminal to the progress of the cells; failures are in their folders."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_INIT", "1")  # the cluster is there, or is being left
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
