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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from rpa_ray.campaign.growing import Growing
from rpa_ray.campaign.queue import ask
from rpa_ray.campaign.run import Releases, View, run_campaign
from rpa_ray.campaign.search import RESERVED, Ending, search_tuner
from rpa_ray.campaign.trial import trial
from rpa_ray.config.sweep import key_of
from rpa_ray.plan.plan import Plan
from rpa_ray.run_folder.outcome import ran_to_an_end

STATE = "tune"
"""Folder of Tune's own record, in the folder of the sweep."""
_END_WAIT_S = 15.0


def run_sweep(plan: Plan, *, view: View, command: str, resume: bool) -> list[dict[str, Any]]:
    """Run the trials that are not done yet; return the summary's records.

    The folder is that of a campaign, and a trial that was run to an end or was stopped is read
    back, whatever Tune knows of it. With ``resume`` Tune's own record of an interrupted grid is
    continued, where there is one of the same trials; a search goes on with its points in any case.

    Raises:
        CampaignFailed: Ranks could not be kept at work, or Tune failed; finished trials are kept.
        FolderInUse: Another run writes to the same folder.
    """
    sweep = plan.config.sweep
    assert sweep is not None
    state = plan.output.resolve() / STATE
    is_search = sweep.search != "grid" or sweep.scheduler is not None

    def start(queue: Any, growing: Growing) -> Trials:
        if is_search:
            return Trials(queue, lambda: search_tuner(queue, growing, state), growing)
        return Trials(queue, lambda: grid_tuner(queue, plan, state, resume=resume), growing)

    releases = Releases(start=start, is_judged=sweep.scheduler is not None)
    return run_campaign(plan, view=view, command=command, releases=releases)


class Trials:
    """Tune at work in a thread of the driver, beside the groups that run what it releases."""

    def __init__(self, queue: Any, tuner: Callable[[], tune.Tuner], growing: Growing) -> None:
        """Start what ``tuner`` returns."""
        self._queue, self._tuner, self._growing = queue, tuner, growing
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
            ask(self._queue, "release", [cell.name for cell in self._growing.plan.cells])
            ask(self._queue, "close")
        except Exception as error:
            self.error = error


def grid_tuner(queue: Any, plan: Plan, state: Path, *, resume: bool) -> tune.Tuner:
    """Return Tune's record of a grid where there is one to continue, or a new one."""
    sweep = plan.config.sweep
    assert sweep is not None
    folders = {
        key_of(point): cell.folder.resolve()
        for point, cell in zip(plan.config.points, plan.cells, strict=True)
    }
    waits = tune.with_parameters(trial, queue=queue, folders=folders, metric=sweep.metric)
    trainable = tune.with_resources(waits, RESERVED)
    what = json.dumps([[cell.name for cell in plan.cells], sweep.metric, sweep.mode])
    name = hashlib.sha256(what.encode()).hexdigest()[:12]
    folder = str(state / name)
    if resume and tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable=trainable, restart_errored=True)
        if all(ran_to_an_end(folders[key]) for key in _finished(tuner)):
            return tuner
    shutil.rmtree(state, ignore_errors=True)
    return tune.Tuner(
        trainable,
        param_space={key: tune.grid_search(sweep.options(key)) for key in sweep.grid},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            # One more than can run: a group that gets free finds the next cell released.
            max_concurrent_trials=plan.num_at_once + 1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(state), verbose=0, callbacks=[Ending()]
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
