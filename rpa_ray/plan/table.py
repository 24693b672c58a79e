"""What a config will do: cells, models to make, CPUs, memory and time, before anything starts."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from rpa_ray.cluster.resources import (
    cpus_asked,
    gpus_asked,
    memory_asked_gib,
    num_model_threads,
    parallel_cells,
)
from rpa_ray.config import with_absolute_paths
from rpa_ray.data.split import ROLE_SHARES
from rpa_ray.plan import LoadedConfig
from rpa_ray.plan.cells import PlannedCell, cell_labels, plan_cells
from rpa_ray.plan.cost import START_S, History, minutes, model_seconds, seconds_to_run
from rpa_ray.recipes.cell_data import planned_data, with_pinned_data
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.to_make import models_to_make, refusal_job

SECONDS_AN_ANSWER = 0.02
"""Of a model that writes refusals, on the embedded models."""
NOT_ESTIMATED = "-"


def plan_table(config: LoadedConfig, output: Path, cache: Path) -> Table:
    """Return one line a model to make and one a cell, with the sums in the caption.

    Seconds are of this machine with as many cells side by side as will be; `-` is not estimated.
    """
    cells = plan_cells(config, output)
    todo = [cell for cell in cells if not cell.done]
    num_at_once = parallel_cells([cell.settings for cell in todo or cells])
    models, prompts = _models_to_make(cells, cache), _prompts_to_answer(cells, cache)
    table = Table(title=f"plan of {config.name}", title_justify="left", caption_justify="left")
    for column in ("step", "what", "samples or steps", "seconds, about"):
        table.add_column(column, justify="right" if "about" in column else "left")
    threads = num_model_threads(cells[0].settings.cluster, num_at_once)
    seconds = [model_seconds(model, cache, threads, num_at_once) for model in models]
    for recipe, needed in zip(models, seconds, strict=True):
        table.add_row("make", recipe.id, f"{recipe.job.num_steps} steps", _seconds(needed))
    for name, num in prompts.items():
        seconds.append(num * SECONDS_AN_ANSWER)
        table.add_row("make", name, f"{num} answers", _seconds(seconds[-1]))
    history = History(cache)
    kind, labels = "cell" if config.sweep is None else "trial", cell_labels(cells)
    for cell in cells:
        needed = None if cell.done else seconds_to_run(cell.settings, cache, history, num_at_once)
        if not cell.done:
            seconds.append(needed)
        text = "done" if cell.done else _seconds(needed)
        table.add_row(kind, labels[cell.name], f"{cell.num_samples} samples", text)
    trials = f"{len(cells)} trials, {len(cells) - len(todo)} done; " * (config.sweep is not None)
    note = "; answers that are no refusals are dropped, so that rows may get fewer"
    table.caption = (
        f"{trials}{_machine(cells, num_at_once)}; {_total(seconds, num_at_once)}; "
        f"results in {output}" + note * bool(prompts)
    )
    return table


def _seconds(needed: float | None) -> str:
    return NOT_ESTIMATED if needed is None else f"{needed:.0f}"


def _total(seconds: Sequence[float | None], num_at_once: int) -> str:
    """Return the time of everything in words, and what is not in it."""
    known = [needed for needed in seconds if needed is not None]
    if not seconds:
        return "nothing is left to do"
    if not known:
        return "the time is not estimated"
    text = f"about {minutes(START_S + sum(known) / min(num_at_once, len(seconds)))} on this machine"
    num_unknown = len(seconds) - len(known)
    return text + f", and {num_unknown} steps that are not estimated" * bool(num_unknown)


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
