"""What a config will do: cells, models to make, CPUs, memory and time, before anything starts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rpa_ray.cluster.resources import (
    cpus_asked,
    gpus_asked,
    memory_asked_gib,
)
from rpa_ray.config import Distribution, ExperimentSettings, SweepSettings
from rpa_ray.defences import offline_defence
from rpa_ray.plan.cells import PlannedCell, cell_labels, setting_text
from rpa_ray.plan.checks.following import departures
from rpa_ray.plan.checks.gpus import cell_memory, holding_most, parts_text
from rpa_ray.plan.cost import START_S, minutes
from rpa_ray.plan.memory import total
from rpa_ray.plan.plan import Plan
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe, made_from
from rpa_ray.recipes.to_make import ModelJob, RefusalJob
from rpa_ray.terminal import plain

NOT_ESTIMATED = "-"
MANY_PASSES = 10
"""A training whose step takes as many is told of."""
FEW_STEPS = 200
"""A judge that learns in fewer is told of."""


def plan_table(plan: Plan) -> Table:
    """Return one line a model to make and one a cell.

    Seconds are of this machine with as many cells side by side as will be; `-` is not estimated.
    """
    config, cells = plan.config, plan.cells
    title = plain(f"plan of {config.name}", "table.title")
    table = Table(title=title, title_justify="left")
    for column in ("step", "what", "samples or steps", "seconds, about"):
        table.add_column(column, justify="right" if "about" in column else "left")
    seconds = {name: plan.seconds(name) for name in plan.jobs}
    hardened = _hardening_labels([j for j in plan.jobs.values() if isinstance(j, ModelJob)])
    for name, job in plan.jobs.items():
        if isinstance(job, ModelJob):
            step, steps = "make", f"{job.recipe.job.num_steps} steps"
            if job.recipe.defence is not None:
                step, passes = "harden", offline_defence(job.recipe.defence).passes
                steps += f" of {passes:.0f} passes" * (passes >= MANY_PASSES)
            what = hardened.get(name, job.recipe.id)
            table.add_row(step, plain(what), steps, _seconds(seconds[name]))
        elif isinstance(job, RefusalJob):
            num_answers = plan.num_answers(job)
            answers = f"{NOT_ESTIMATED if num_answers is None else num_answers} answers"
            table.add_row("make", plain(name), answers, _seconds(seconds[name]))
    kind, labels = "cell" if config.sweep is None else "trial", cell_labels(cells)
    for cell in cells:
        text = "done" if cell.done else _seconds(seconds[cell.name])
        table.add_row(kind, plain(labels[cell.name]), f"{cell.num_samples} samples", text)
    if num := config.num_undrawn:
        what = f"{num} at points that follow from the results"
        table.add_row("trials", what, "", _seconds(_sum(_undrawn_seconds(plan))))
    return table


def _undrawn_seconds(plan: Plan) -> list[float | None]:
    """Return about how long the trials take whose points are not known: as those that are."""
    known = list(plan.costs.seconds.values())
    mean = sum(known) / len(known) if known else None
    return [mean] * plan.config.num_undrawn


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [needed for needed in seconds if needed is not None]
    return sum(known) if known else None


def search_notes(plan: Plan) -> list[str]:
    """Return in lines how a sweep finds its points, what varies, and what is not known before.

    Nothing of a grid without a scheduler, whose trials the table tells.
    """
    sweep, num_undrawn = plan.config.sweep, plan.config.num_undrawn
    if sweep is None or (sweep.search == "grid" and sweep.scheduler is None):
        return []
    num_known = len(plan.cells)
    how = f"search: {sweep.search}, {counted(num_known + num_undrawn, 'trial')}"
    if num_undrawn:
        how += f", {num_undrawn} of them at points that follow from the results of others"
    if sweep.scheduler is not None:
        how += f"; {sweep.scheduler} may stop a trial after any look, which shortens the time"
    lines = [how, f"varied: {'; '.join(f'{key} {_range(sweep, key)}' for key in sweep.grid)}"]
    if num_undrawn and (found := _varying_models(plan)):
        told = ", ".join(f"{num} {kind}" for kind, num in found.items())
        lines.append(
            f"depends on values that are not drawn yet: models ({told} for {num_known} trials); "
            "the estimate of the time has none for the others"
        )
    return lines


def _range(sweep: SweepSettings, key: str) -> str:
    values = sweep.grid[key]
    if isinstance(values, Distribution):
        return f"{values.scale} {values.low:g} to {values.high:g}"
    return ", ".join(map(str, values))


def _varying_models(plan: Plan) -> dict[str, int]:
    """Return how many models the trials need that some need and some do not, by their kind."""
    needed = [{r.key(): r.kind for r in inputs.models.recipes()} for inputs in plan.all_inputs]
    shared = set(needed[0]).intersection(*needed)
    kinds = {key: kind for recipes in needed for key, kind in recipes.items() if key not in shared}
    return dict(Counter(kinds.values()))


def _hardening_labels(jobs: Sequence[ModelJob]) -> dict[str, str]:
    """Return, by the name of each job that hardens, its defences and the settings that vary.

    Settings vary between the jobs of the same defences.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for job in jobs:
        parts = job.recipe.hardenings
        if parts:
            model = parts[0].start
            values = {"model": made_from(model), "data": job.data.name}
            for part in parts:
                own = f"{part.id}." if len(parts) > 1 else ""
                values |= {own + key: value for key, value in (part.defence or {}).items()}
            found[job.name] = "+".join(part.id for part in parts), values
    labels = {}
    for name, (defence, values) in found.items():
        alike = [others for other, others in found.values() if other == defence]
        varied = [key for key in values if any(o.get(key) != values[key] for o in alike)]
        labels[name] = " ".join([defence, *(setting_text(key, values[key]) for key in varied)])
    return labels


def plan_caption(plan: Plan) -> str:
    """Return in one line what a plan asks of the machine, how long it takes, and where it goes."""
    config, cells = plan.config, plan.cells
    seconds = [*map(plan.seconds, plan.jobs), *_undrawn_seconds(plan)]
    num_done, num_trials = len(cells) - len(plan.todo), len(cells) + config.num_undrawn
    trials = f"{num_trials} trials, {num_done} done; " * (config.sweep is not None)
    note = "; answers that are no refusals are dropped, so that rows may get fewer"
    num = plan.num_at_once
    return (
        f"{trials}{_machine(cells, num)}; {_total(seconds, num)}; results in "
        f"{plan.output}" + note * any(isinstance(job, RefusalJob) for job in plan.jobs.values())
    )


def follow_notes(
    asked: Sequence[ExperimentSettings], found: Sequence[ExperimentSettings]
) -> list[str]:
    """Return in lines what was not set and follows from data and models, each value once."""
    values: dict[str, list[str]] = {}
    for one, other in zip(asked, found, strict=True):
        for key, value in departures(one, other).items():
            told = "left out" if value is None else str(value)
            if told not in values.setdefault(key, []):
                values[key].append(told)
    told_of = "; ".join(f"{key}: {', '.join(all_of)}" for key, all_of in values.items())
    return [f"not set, taken from data and model: {told_of}"] if values else []


def measuring_notes(cells: Sequence[CellInputs]) -> list[str]:
    """Return in lines which models measure answers to real text, and judges that learn too little.

    What measures in the embedded world is always the same.
    """
    lines: dict[str, None] = {}
    for inputs in cells:
        models = inputs.models
        named = {
            "judge": models.judge,
            "second judge": models.second_judge,
            "perplexity": models.perplexity,
            "helpfulness": models.helpfulness,
        }
        if inputs.settings.data.world == "real":
            told = (f"{name} {made_from(model)}" for name, model in named.items())
            lines["measured by: " + ", ".join(told)] = None
        for name in ("judge", "second judge"):
            model = named[name]
            if isinstance(model, ModelRecipe) and model.job.num_steps < FEW_STEPS:
                num_rows = model.rows.settings["num_rows"]
                text = f"the {name} learns in {model.job.num_steps} steps from {num_rows} rows"
                lines[f"{text}: below {FEW_STEPS} its probabilities may mean little"] = None
    return list(lines)


def reading_notes(cells: Sequence[CellInputs]) -> list[str]:
    """Return in lines which splits of a folder are read, where it has others or no test split."""
    lines: dict[str, None] = {}
    for inputs in cells:
        data = inputs.data
        sources = [data.source, data.safety.source]
        if data.helpful_source is not None:
            sources.append(data.helpful_source)
        for source in sources if data.settings.world == "real" else ():
            if not Path(source.place).expanduser().is_dir():
                continue
            read, left = source.splits()
            held_out = ", of which a part of the prompts is held out" * (len(read) == 1)
            unread = f"; {', '.join(left)} not read" * bool(left)
            if held_out or unread:
                told = f"{source.path_key}: {' and '.join(read)} of {source.place}"
                lines[told + held_out + unread] = None
    return list(lines)


def memory_notes(plan: Plan) -> list[str]:
    """Return in lines what a GPU of each kind of worker holds by part, in the cell with most.

    Nothing where no GPU is asked for.
    """
    labels = cell_labels(plan.cells)
    every = {
        labels[cell.name]: memory
        for cell, inputs in zip(plan.cells, plan.all_inputs, strict=True)
        if (memory := cell_memory(inputs)) is not None
    }
    settings = plan.cells[0].settings
    if not every:
        is_known = not gpus_asked(settings)
        return [] if is_known else ["memory of the GPUs: the sizes of the model are not known"]
    lines = []
    most = holding_most(every, is_colocated=settings.cluster.is_colocated)
    for kind, (label, parts) in most.items():
        whose = f" with {label}" * (len(every) > 1)
        words = kind.replace("_", " ")
        lines.append(f"GPU of a {words}{whose}: {total(parts):.1f} GiB ({parts_text(parts)})")
    checkpoint = max(memory.checkpoint_gib for memory in every.values())
    loading = max(memory.host_gib_a_rank for memory in every.values())
    offloads = " and beside an offloaded optimizer" * settings.cluster.offload_optimizer
    lines.append(
        f"a checkpoint: {checkpoint:.1f} GiB on disk, two at a time; main memory while models are "
        f"loaded{offloads}: {loading:.1f} GiB a rank"
    )
    return lines


def counted(num: float, what: str) -> str:
    """Return a number with what is counted, in the plural unless it is one."""
    return f"{num:g} {what}" + "s" * (num != 1)


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


def _machine(cells: Sequence[PlannedCell], num: int) -> str:
    """Return what ``num`` of the cells, which share one cluster, reserve at once."""
    settings = cells[0].settings
    gpus = num * gpus_asked(settings)
    memory = ""
    if not gpus:
        gib = num * max(memory_asked_gib(cell.settings) for cell in cells)
        memory = f", about {gib:.1f} GiB memory"
    return (
        (f"{num} cells at a time, " if num > 1 else "")
        + counted(num * cpus_asked(settings), "CPU")
        + (f", {counted(gpus, 'GPU')}" if gpus else "")
        + memory
    )
