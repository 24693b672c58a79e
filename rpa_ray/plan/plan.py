"""What a command will do, decided once: cells, jobs, who waits for whom, and the cost."""

from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rpa_ray.cluster.resources import parallel_cells
from rpa_ray.config import with_absolute_paths, with_local_paths
from rpa_ray.data.hub import DataOutOfReach
from rpa_ray.data.hub_model import with_pinned_models
from rpa_ray.data.split import ROLE_SHARES
from rpa_ray.plan.cells import PlannedCell, is_done, plan_cells
from rpa_ray.plan.cost import CellCosts, model_seconds
from rpa_ray.plan.load import LoadedConfig, with_cells
from rpa_ray.recipes.cell_data import CellData, with_pinned_data
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.to_make import Cell, Job, ModelJob, RefusalJob, plan_jobs

SECONDS_AN_ANSWER = 0.02
"""Of a model that writes refusals, on the embedded models."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A config with all that follows from it, the results that lie in ``output``, and the cache."""

    config: LoadedConfig
    output: Path
    inputs: CampaignInputs
    cells: tuple[PlannedCell, ...]
    """In the order of the config."""
    todo: tuple[PlannedCell, ...]
    """Those without a result, the longest first."""
    jobs: dict[str, Job]
    """What has to be made, then the cells, by name; commits of the Hub and whole paths in them."""
    needs: dict[str, list[str]]
    """The jobs that each job waits for."""
    num_at_once: int
    """How many cells run side by side."""
    costs: CellCosts

    @property
    def cache(self) -> Path:
        """Return where models and worlds are kept."""
        return self.inputs.cache

    @property
    def all_inputs(self) -> list[CellInputs]:
        """Return the rows and models of every cell."""
        return [self.inputs.of(cell.settings) for cell in self.cells]

    @cached_property
    def named_paths(self) -> frozenset[Path]:
        """Return every folder and file that the config names, whole: they are the user's."""
        found: set[Path] = set()

        def note(path: Path) -> str:
            found.add(path.resolve())
            return str(path)

        for cell in self.cells:
            with_local_paths(cell.settings, note)
        return frozenset(found)

    @cached_property
    def unsafe_models(self) -> dict[str, frozenset[Path]]:
        """Return where models that learn what is unsafe lie once made, by the cell that needs them.

        None that the config names by its path.
        """
        found = {}
        for cell in self.cells:
            recipes = self.inputs.of(pinned_cell(cell).settings).models.recipes()
            folders = [recipe.folder(self.cache) for recipe in recipes if recipe.is_unsafe]
            found[cell.name] = frozenset(f for f in folders if f.resolve() not in self.named_paths)
        return found

    def is_current(self) -> bool:
        """Return whether nothing has changed since: cells got results, or models were deleted."""
        made = {j.recipe.folder(self.cache) for j in self.jobs.values() if isinstance(j, ModelJob)}
        needed = {folder for cell in self.todo for folder in self.unsafe_models[cell.name]}
        return all(folder.is_dir() for folder in needed - made) and all(
            cell.done == is_done(cell.folder, cell.settings, scheduled=self.config.is_scheduled)
            for cell in self.cells
        )

    def num_answers(self, job: RefusalJob) -> int | None:
        """Return how many prompts are answered for refusals; None with the data out of reach."""
        try:
            roles = CellData(job.data, self.cache).planned.roles
        except DataOutOfReach:
            return None
        return len({pair.prompt for role in ROLE_SHARES for pair in roles[role]})

    def seconds(self, name: str) -> float | None:
        """Return about how long a job takes beside the others; None where it is not estimated."""
        match job := self.jobs[name]:
            case ModelJob():
                cluster = self.cells[0].settings.cluster
                return model_seconds(job.recipe, self.cache, cluster, self.num_at_once)
            case RefusalJob():
                num_answers = self.num_answers(job)
                return None if num_answers is None else num_answers * SECONDS_AN_ANSWER
            case Cell():
                return self.costs.seconds.get(name)


def make_plan(
    config: LoadedConfig, output: Path, inputs: CampaignInputs, unasked: Set[str] = frozenset()
) -> Plan:
    """Return what a config that was checked will do; reads the data, and starts nothing.

    From here on a model of the Hub is named with its commit, in results too, but for those
    ``unasked``, which a plan that is only shown may have.

    Raises:
        ConfigError: the Hub does not say which commit an id names, or two cells name the same.
        DataError: data cannot be read.
    """
    config = with_cells(config, lambda cell: with_pinned_models(cell, unasked))
    cells = plan_cells(config, output)
    undone = [cell for cell in cells if not cell.done]
    num_at_once = parallel_cells([cell.settings for cell in undone or cells])
    costs = CellCosts(undone, inputs, num_at_once)
    todo = costs.longest_first(undone)
    jobs, needs = plan_jobs([pinned_cell(cell) for cell in todo], inputs)
    return Plan(
        config=config,
        output=output,
        inputs=inputs,
        cells=tuple(cells),
        todo=tuple(todo),
        jobs=jobs,
        needs=needs,
        num_at_once=num_at_once,
        costs=costs,
    )


def pinned_cell(cell: PlannedCell) -> Cell:
    """Return a cell as processes elsewhere can run it."""
    settings = with_absolute_paths(with_pinned_data(cell.settings))
    return Cell(name=cell.name, settings=settings, folder=cell.folder.resolve())
