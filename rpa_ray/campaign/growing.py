"""The plan of a campaign at work, to which a search adds one cell after the other."""

from collections.abc import Callable, Mapping
from typing import Any

from rpa_ray.campaign.cell_clock import CellClock
from rpa_ray.campaign.progress import Expected
from rpa_ray.campaign.queue import ask
from rpa_ray.plan.cells import PlannedCell, cell_labels
from rpa_ray.plan.plan import Plan
from rpa_ray.recipes.to_make import Cell, Job


class Growing:
    """What is done, as far as it is known; beside the ranks that do it."""

    def __init__(
        self,
        plan: Plan,
        *,
        expect: Callable[[Mapping[str, Expected], int], None],
        begin: Callable[[Plan, PlannedCell], None],
        hold: Callable[[Plan], None],
    ) -> None:
        """Take the plan; the others hear of cells that are added.

        Args:
            plan: What is known at the start.
            expect: Takes all jobs, and how many are done side by side.
            begin: Makes the folder of a cell.
            hold: Keeps in the cache what the cells need.
        """
        self.plan = plan
        self.jobs: dict[str, Job] = dict(plan.jobs)
        self.clock = CellClock(plan)
        self._expect, self._begin, self._hold = expect, begin, hold
        self._expected = _expected(plan)
        expect(self._expected, plan.num_at_once)

    def add(self, longer: Plan, queue: Any) -> None:
        """Have the last cell of a longer plan done, and what it needs; the cell is held."""
        cell = longer.cells[-1]
        self._hold(longer)
        if not cell.done:
            self._begin(longer, cell)
            new = {name: job for name, job in longer.jobs.items() if name not in self.jobs}
            self.jobs |= new
            self.clock.add(longer, cell.name)
            self._expected = self._expected | _expected(longer)
            self._expect(self._expected, self.plan.num_at_once)
            ask(queue, "add", new, longer.needs, [cell.name])
        self.plan = longer


def _expected(plan: Plan) -> dict[str, Expected]:
    """Return the jobs with what tells them apart and about how long they take."""
    labels = cell_labels(plan.cells)
    return {
        name: Expected(
            label=labels.get(name, name), is_cell=isinstance(job, Cell), seconds=plan.seconds(name)
        )
        for name, job in plan.jobs.items()
    }
