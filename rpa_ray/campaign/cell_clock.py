"""Cells of a campaign against their estimates: what they took is kept, and slow steps are told."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rpa_ray.campaign.job_state import JobState
from rpa_ray.cluster.hardware import native_dtype
from rpa_ray.config import AskedDtype
from rpa_ray.plan.plan import Plan
from rpa_ray.recipes.to_make import Stage
from rpa_ray.run_folder.outcome import read_outcome


class CellClock:
    """Knows the estimates of the cells that are to be run, and looks at them now and then."""

    def __init__(self, plan: Plan) -> None:
        self._num_at_once, self._costs = plan.num_at_once, plan.costs
        self._cells = {cell.name: cell for cell in plan.todo}
        self._running = dict(plan.costs.uncorrected)
        self._step_s = dict(plan.costs.step_s)
        self._slow = SlowSteps(self._step_s)

    def add(self, plan: Plan, name: str) -> None:
        """Take a cell that a longer plan has."""
        self._cells |= {cell.name: cell for cell in plan.todo if cell.name == name}
        for own, found in (
            (self._running, plan.costs.uncorrected),
            (self._step_s, plan.costs.step_s),
        ):
            own |= {cell: seconds for cell, seconds in found.items() if cell == name}

    def look(self, jobs: Sequence[JobState], say: Callable[[str], None]) -> None:
        """Keep the times of cells that ended well, and say once where steps are slow."""
        for job in jobs:
            estimated_s = self._running.get(job.name)
            if estimated_s is None:
                continue
            if job.status == "ok":
                del self._running[job.name]
                cell = self._cells[job.name]
                # With what it took before an interruption, which the queue has not seen.
                took_s = (read_outcome(cell.folder) or {}).get("seconds")
                if took_s is not None:
                    self._costs.history.record(cell.settings, estimated_s, took_s)
            elif job.stage == Stage.ATTACK and job.num_done:
                self._tell_of_slow_steps(job, say)

    def _tell_of_slow_steps(self, job: JobState, say: Callable[[str], None]) -> None:
        settings = self._cells[job.name].settings
        line = self._slow.look(
            job.name,
            job.num_done - job.first_step,
            time.time() - job.stage_started,
            dtype=settings.model.dtype,
            # A rank, an engine and a scorer take turns.
            num_busy=self._num_at_once * settings.cluster.num_ranks,
        )
        if line:
            say(line)


SLOW = 5.0
"""A step that takes so many times its estimate is told of."""


class SlowSteps:
    """Tells once where the steps of an attack take far longer than was estimated."""

    def __init__(self, step_s: dict[str, float]) -> None:
        """Take the estimated seconds of a step of each cell, contention included."""
        self._step_s = step_s
        self._swapped = swapped_pages()
        self._is_told = False

    def look(
        self, name: str, num_done: int, seconds: float, *, dtype: AskedDtype, num_busy: int
    ) -> str:
        """Return what is to be told of a cell, if anything.

        Args:
            name: The cell.
            num_done: Steps that its ranks have done.
            seconds: What they took.
            dtype: Type of its weights.
            num_busy: Processes that this run itself keeps busy.
        """
        expected = self._step_s.get(name)
        if self._is_told or expected is None or num_done < 3:
            return ""
        step_s = seconds / num_done
        if step_s < SLOW * expected:
            return ""
        self._is_told = True
        cause = slow_step_cause(
            doubt=native_dtype(on_gpu=False).doubt(dtype),
            load=os.getloadavg()[0],
            num_busy=num_busy,
            num_swapped=swapped_pages() - self._swapped,
        )
        return f"steps take {step_s:.1f} s, {step_s / expected:.0f} times the estimate: {cause}"


def slow_step_cause(*, doubt: str, load: float, num_busy: int, num_swapped: int) -> str:
    """Return the likely cause of slow steps.

    Args:
        doubt: What a measurement has against the type of weights, if anything.
        load: Processes that want to run, as the system counts them.
        num_busy: Those of this run.
        num_swapped: Pages that were swapped meanwhile.
    """
    if doubt:
        return doubt
    if num_swapped > 1000:
        return "the machine swaps; free memory or lower cluster.parallel_cells"
    if load > 2 * num_busy + 1:
        return f"other work runs on this machine (load {load:.0f}, {num_busy} of it this run's)"
    return "no cause was found; see the logs of the workers"


def swapped_pages() -> int:
    """Return the pages that were swapped in or out since the machine started."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("pswpin", "pswpout")))
