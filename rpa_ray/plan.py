"""What a config will do: cells, models to make, CPUs, memory and time, before anything starts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from rpa_ray.attacks.grpo import GRPO
from rpa_ray.cells import PlannedCell, plan_cells
from rpa_ray.config import (
    ExperimentSettings,
    LoadedConfig,
    RolloutConfig,
    with_absolute_paths,
)
from rpa_ray.data.split import ROLE_SHARES
from rpa_ray.datasets import planned_data, with_pinned_data
from rpa_ray.jobs import models_to_make, refusal_job
from rpa_ray.placement import cpus_asked, gpus_asked, memory_asked_gib, parallel_cells
from rpa_ray.recipe import ModelRecipe

SECONDS_A_MODEL_STEP = {"base": 0.14, "chat": 0.12, "perplexity": 0.14}
SECONDS_A_SCORER_STEP = 0.07
SECONDS_A_ROW = 0.015
SECONDS_A_ROLLOUT = 0.045
SECONDS_A_ROLLOUT_OF_A_GROUP = 0.016
SECONDS_AN_ANSWER = 0.02
SECONDS_AN_EVALUATION = 10.0
SECONDS_TO_START = 25.0
GAIN_OF_A_PARALLEL_CELL = 0.4
"""Rough figures of the embedded models on two CPU cores; larger models are not estimated yet."""


def plan_table(config: LoadedConfig, output: Path, cache: Path) -> Table:
    """Return one line a model to make and one a cell, with the sums in the caption."""
    cells = plan_cells(config, output)
    models = _models_to_make(cells, cache)
    table = Table(title=f"plan of {config.name}", title_justify="left", caption_justify="left")
    for column in ("step", "what", "samples or steps", "seconds, about"):
        table.add_column(column, justify="right" if "about" in column else "left")
    for recipe in models:
        steps = f"{recipe.job.num_steps} steps"
        table.add_row("make", recipe.id, steps, f"{_seconds_to_make(recipe):.0f}")
    prompts = _prompts_to_answer(cells, cache)
    for name, num in prompts.items():
        seconds = f"{num * SECONDS_AN_ANSWER:.0f}"
        table.add_row("make", name, f"{num} answers", seconds)
    kind = "cell" if config.sweep is None else "trial"
    for cell in cells:
        seconds = "done" if cell.done else f"{seconds_to_run(cell.settings):.0f}"
        table.add_row(kind, _describe(cell), f"{_num_samples(cell)} samples", seconds)
    todo = [cell for cell in cells if not cell.done]
    trials = f"{len(cells)} trials, {len(cells) - len(todo)} done; " * (config.sweep is not None)
    num_at_once = parallel_cells([cell.settings for cell in todo or cells])
    gain = 1 + GAIN_OF_A_PARALLEL_CELL * (num_at_once - 1)
    total = (
        sum(map(_seconds_to_make, models)) + sum(seconds_to_run(cell.settings) for cell in todo)
    ) / gain
    total += sum(prompts.values()) * SECONDS_AN_ANSWER
    note = "; answers that are no refusals are dropped, so that rows may get fewer"
    minutes = (total + SECONDS_TO_START * bool(todo)) / 60
    table.caption = (
        f"{trials}{_machine(cells, num_at_once)}; about {minutes:.0f} min on two cores; "
        f"results in {output}" + note * bool(prompts)
    )
    return table


def _models_to_make(cells: Sequence[PlannedCell], cache: Path) -> list[ModelRecipe]:
    models: dict[str, ModelRecipe] = {}
    for cell in cells:
        if not cell.done:
            settings = with_absolute_paths(with_pinned_data(cell.settings))
            for recipe in models_to_make(settings, cache):
                models.setdefault(recipe.key(), recipe)
    return list(models.values())


def _prompts_to_answer(cells: Sequence[PlannedCell], cache: Path) -> dict[str, int]:
    """Return how many prompts have to be answered for refusals, by the name of the job."""
    found: dict[str, int] = {}
    for cell in cells:
        data = with_absolute_paths(with_pinned_data(cell.settings)).data
        job = None if cell.done else refusal_job(data, cache)
        if job is not None:
            roles = planned_data(data, cache).roles
            found[job.name] = len({pair.prompt for role in ROLE_SHARES for pair in roles[role]})
    return found


def _describe(cell: PlannedCell) -> str:
    settings = cell.settings
    what = f"{settings.model.path}: {settings.attack.name}, {settings.defence.name}"
    params = [f"{key}={value}" for key, value in cell.params.items()]
    return ", ".join([what, *params, f"seed {settings.seed}"])


def _machine(cells: Sequence[PlannedCell], num: int) -> str:
    """Return what ``num`` of the cells, which share one cluster, reserve at once."""
    settings = cells[0].settings
    gpus = num * gpus_asked(settings)
    gib = num * max(memory_asked_gib(cell.settings) for cell in cells)
    return (
        (f"{num} cells at a time, " if num > 1 else "")
        + f"{num * cpus_asked(settings):g} CPUs"
        + (f", {gpus:g} GPUs" if gpus else "")
        + f", about {gib:.1f} GiB memory"
    )


def _num_samples(cell: PlannedCell) -> int:
    return 0 if cell.settings.training is None else cell.settings.data.num_samples


def _seconds_to_make(recipe: ModelRecipe) -> float:
    return recipe.job.num_steps * SECONDS_A_MODEL_STEP.get(recipe.id, SECONDS_A_SCORER_STEP)


def seconds_to_run(settings: ExperimentSettings) -> float:
    """Return about how long a cell takes on the embedded models, whatever else runs beside it."""
    attack = settings.attack
    if settings.training is None:
        return SECONDS_AN_EVALUATION
    seconds = SECONDS_A_ROLLOUT if isinstance(attack, RolloutConfig) else SECONDS_A_ROW
    if isinstance(attack, GRPO.Config):
        seconds = SECONDS_A_ROLLOUT_OF_A_GROUP * attack.group_size
    return 2 * SECONDS_AN_EVALUATION + settings.data.num_samples * seconds


def longest_first(cells: Iterable[PlannedCell]) -> list[PlannedCell]:
    """Return the cells in the order of their time, so that none runs alone at the end."""
    return sorted(cells, key=lambda cell: -seconds_to_run(cell.settings))
