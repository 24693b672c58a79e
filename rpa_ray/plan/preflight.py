"""What a command says before anything is started: what follows, what is made, what it costs."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rpa_ray.plan.checks.all import check_all
from rpa_ray.plan.checks.machine import check_checkpoints
from rpa_ray.plan.load import LoadedConfig
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.plan.table import follow_notes, measuring_notes, plan_caption, plan_table
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.terminal import say, show_table


def checked(
    loaded: LoadedConfig, folder: Path, cache: Path, console: Console
) -> tuple[LoadedConfig, CampaignInputs]:
    """Refuse what cannot be; return what is run, and the rows and models found on the way.

    Raises:
        ConfigError: one thing has to change in the config.
        DataError: one thing, in the data.
        Refused: several.
    """
    inputs = CampaignInputs(cache)
    asked = loaded.campaign.cells
    cells = list(zip(loaded.wheres, map(inputs.of, asked), strict=True))
    found = check_all(cells, {"--output": folder, "RPA_RAY_CACHE": cache})
    for note in follow_notes(asked, found.settings):
        say(console, note)
    if found.placed:
        say(
            console,
            f"models: {len(found.placed)} of the default world come with the package, nobody "
            f"trains them; in {cache}",
        )
    campaign = loaded.campaign.model_copy(update={"cells": found.settings})
    return replace(loaded, campaign=campaign), inputs


def planned(loaded: LoadedConfig, folder: Path, inputs: CampaignInputs, console: Console) -> Plan:
    """Print and return what will be done; refuse where other ranks began a cell of it.

    Raises:
        ConfigError: a cell of it was begun by another number of ranks.
    """
    plan = make_plan(loaded, folder, inputs)
    for cell in plan.todo:
        check_checkpoints(cell.folder, cell.settings)
    show_table(console, plan_table(plan))
    say(console, plan_caption(plan))
    for note in measuring_notes([inputs.of(cell.settings) for cell in plan.cells]):
        say(console, note)
    return plan
