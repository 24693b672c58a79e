"""Cells of a campaign against their estimates: what they took is kept, and slow steps are told."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rpa_ray.campaign.queue import JobState
from rpa_ray.plan.cells import PlannedCell, read_outcome
from rpa_ray.plan.cost import History, SlowSteps, estimate_cell, side_by_side
from rpa_ray.recipes.to_make import Stage


class CellClock:
    """Knows the estimates of the cells that are to be run, and looks at them now and then."""

    def __init__(self, todo: Sequence[PlannedCell], cache: Path, num_at_once: int) -> None:
        """Take the cells, of which ``num_at_once`` run side by side."""
        self.cache, self.num_at_once = cache, num_at_once
        self._settings = {cell.name: cell.settings for cell in todo}
        self._folders = {cell.name: cell.folder for cell in todo}
        self._history = History(cache)
        factor = side_by_side(num_at_once)
        found = {name: estimate_cell(cell, cache) for name, cell in self._settings.items()}
        known = {name: estimate for name, estimate in found.items() if estimate is not None}
        corrections = {name: self._history.correction(self._settings[name]) for name in known}
        self._uncorrected = {name: factor * known[name].seconds for name in known}
        self.seconds = {name: corrections[name] * self._uncorrected[name] for name in known}
        """About how long each cell takes, by its name; none where that is not estimated."""
        self._slow = SlowSteps(
            {name: factor * corrections[name] * known[name].step_s for name in known}
        )

    def look(self, jobs: Sequence[JobState], say: Callable[[str], None]) -> None:
        """Keep the times of cells that ended well, and say once where steps are slow."""
        for job in jobs:
            estimated_s = self._uncorrected.get(job.name)
            if estimated_s is None:
                continue
            if job.status == "ok":
                del self._uncorrected[job.name]
                # With what it took before an interruption, which the queue has not seen.
                took_s = (read_outcome(self._folders[job.name]) or {}).get("seconds")
                if took_s is not None:
                    self._history.record(self._settings[job.name], estimated_s, took_s)
            elif job.stage == Stage.ATTACK and job.num_done:
                self._tell_of_slow_steps(job, say)

    def _tell_of_slow_steps(self, job: JobState, say: Callable[[str], None]) -> None:
        settings = self._settings[job.name]
        line = self._slow.look(
            job.name,
            job.num_done,
            time.time() - job.stage_started,
            dtype=settings.model.dtype,
            # A rank, an engine and a scorer take turns.
            num_busy=self.num_at_once * settings.cluster.num_ranks,
        )
        if line:
            say(line)
