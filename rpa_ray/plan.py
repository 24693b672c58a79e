"""What a config will do: cells, models to make, CPUs, memory and time, before anything starts."""

from pathlib import Path

from rich.table import Table

from rpa_ray.attacks import ATTACKS
from rpa_ray.campaign import PlannedCell, plan_cells
from rpa_ray.cell_models import cell_models
from rpa_ray.config import LoadedConfig
from rpa_ray.preflight import cpus_asked
from rpa_ray.recipe import ModelRecipe, in_order

SECONDS_A_MODEL_STEP = {"base": 0.12, "chat": 0.1, "perplexity": 0.12}
SECONDS_A_SCORER_STEP = 0.06
SECONDS_A_SAMPLE = 0.06
SECONDS_AN_EVALUATION = 8.0
SECONDS_TO_START = 25.0
MEMORY_GIB_A_PROCESS = 1.2
"""Rough figures of the embedded models on two CPU cores; larger models are not estimated yet."""


def plan_table(config: LoadedConfig, output: Path, cache: Path) -> Table:
    """Return the plan as a table, with its sums in the caption."""
    cells = plan_cells(config, output)
    models: dict[str, ModelRecipe] = {}
    for cell in cells:
        if not cell.done:
            for recipe in in_order(cell_models(cell.settings, cache).recipes(), cache):
                models.setdefault(recipe.key(), recipe)
    table = Table(title=f"plan of {config.name}", title_justify="left", caption_justify="left")
    for column in ("step", "what", "samples or steps", "seconds, about"):
        table.add_column(column, justify="right" if "about" in column else "left")
    total = SECONDS_TO_START if any(not cell.done for cell in cells) else 0.0
    for recipe in models.values():
        seconds = recipe.job.num_steps * SECONDS_A_MODEL_STEP.get(recipe.id, SECONDS_A_SCORER_STEP)
        total += seconds
        table.add_row("make", recipe.id, f"{recipe.job.num_steps} steps", f"{seconds:.0f}")
    for cell in cells:
        seconds = _seconds(cell)
        total += seconds
        what = (
            f"{cell.settings.model.path}: {cell.settings.attack.name}, {cell.settings.defence.name}"
        )
        samples = _num_samples(cell)
        state = "done" if cell.done else f"{seconds:.0f}"
        table.add_row("cell", what, f"{samples} samples", state)
    cluster = cells[0].settings.cluster
    processes = cluster.num_ranks + cluster.num_rollout_workers + cluster.num_scorer_workers
    table.caption = (
        f"{cpus_asked(cells[0].settings):g} CPUs, about {processes * MEMORY_GIB_A_PROCESS:.1f} GiB "
        f"memory, about {total / 60:.0f} min on two cores; results in {output}"
    )
    return table


def _num_samples(cell: PlannedCell) -> int:
    attack = ATTACKS[cell.settings.attack.name]
    return 0 if attack is ATTACKS["none"] else cell.settings.data.num_samples


def _seconds(cell: PlannedCell) -> float:
    if cell.done:
        return 0.0
    return 2 * SECONDS_AN_EVALUATION + _num_samples(cell) * SECONDS_A_SAMPLE
