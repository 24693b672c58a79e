"""What a command says before anything is started: what follows, what is made, what it costs."""

from collections.abc import Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rpa_ray.config import ConfigError, Point, with_dtype
from rpa_ray.data.errors import DataError
from rpa_ray.data.hub import DataOutOfReach, local_cache_alone
from rpa_ray.data.hub_model import ModelOutOfReach, with_pinned_models
from rpa_ray.plan.checks.all import check_all
from rpa_ray.plan.checks.machine import check_checkpoints
from rpa_ray.plan.checks.settings import check_data_source
from rpa_ray.plan.load import LoadedConfig
from rpa_ray.plan.places import place_notes
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.plan.points import with_points
from rpa_ray.plan.table import (
    follow_notes,
    measuring_notes,
    memory_notes,
    plan_caption,
    plan_table,
    reading_notes,
    search_notes,
)
from rpa_ray.recipes.cell_data import with_pinned_data
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.terminal import say, show_table


def checked(
    loaded: LoadedConfig, folder: Path, cache: Path, console: Console, *, on_paper: bool = False
) -> tuple[LoadedConfig, CampaignInputs, frozenset[str]]:
    """Refuse what cannot be; return what is run, and the rows and models found on the way.

    The last of what is returned are the Hub ids that could not be asked for; a plan alone, which is
    ``on_paper``, has any.

    Raises:
        ConfigError: one thing has to change in the config.
        DataError: one thing, in the data.
        Refused: several.
    """
    inputs = CampaignInputs(cache)
    asked = loaded.campaign.cells
    cells = list(zip(loaded.wheres, map(inputs.of, asked), strict=True))
    folders = {"--output": folder, "RPA_RAY_CACHE": cache}
    found = check_all(cells, folders, on_paper=on_paper)
    for note in follow_notes(asked, found.settings):
        say(console, note)
    if found.not_checked:
        say(console, f"not checked: Hub out of reach: {', '.join(found.not_checked)}")
    if found.placed:
        say(
            console,
            f"models: {len(found.placed)} of the default world come with the package, nobody "
            f"trains them; in {cache}",
        )
    campaign = loaded.campaign.model_copy(update={"cells": found.settings})
    return replace(loaded, campaign=campaign), inputs, frozenset(found.not_checked)


def hub_if_in_reach(loaded: LoadedConfig) -> AbstractContextManager[None]:
    """Return a context in which the Hub is asked, if it answers, or else the local cache alone.

    Otherwise every model would be waited for in vain.
    """
    for cell in loaded.campaign.cells:
        try:
            check_data_source(cell)
            with_pinned_data(with_pinned_models(cell))
        except (ModelOutOfReach, DataOutOfReach):
            return local_cache_alone()
        except (ConfigError, DataError):  # refused by the checks
            continue
    return nullcontext()


def planned(
    loaded: LoadedConfig,
    folder: Path,
    inputs: CampaignInputs,
    console: Console,
    unasked: Set[str] = frozenset(),
) -> Plan:
    """Print and return what will be done; refuse where other ranks began a cell of it.

    ``unasked`` are the Hub ids of which the commit is left open.

    Raises:
        ConfigError: a cell of it was begun by another number of ranks.
    """
    plan = make_plan(loaded, folder, inputs, unasked)
    for cell in plan.todo:
        check_checkpoints(cell.folder, cell.settings)
    show_table(console, plan_table(plan))
    say(console, plan_caption(plan))
    cells = plan.all_inputs
    notes = [*search_notes(plan), *memory_notes(plan), *place_notes(plan), *reading_notes(cells)]
    for note in (*notes, *measuring_notes(cells)):
        say(console, note)
    return plan


def with_trial(plan: Plan, point: Point) -> Plan:
    """Return the plan of a search with one trial more, checked as the others were.

    What was asked of machines and the Hub before the first trial is not asked again.

    Raises:
        ConfigError: the point cannot be run.
        DataError: its data cannot be read.
        Refused: several.
    """
    config, inputs = plan.config, plan.inputs
    (asked,) = with_points(config, [point]).campaign.cells
    dtype = config.campaign.cells[0].model.dtype
    typed = asked if dtype == "auto" else with_dtype(asked, dtype)
    folders = {"--output": plan.output, "RPA_RAY_CACHE": plan.cache}
    found = check_all([("", inputs.of(typed))], folders, on_paper=True)
    cells = (*config.campaign.cells, *found.settings)
    grown = replace(
        config,
        campaign=config.campaign.model_copy(update={"cells": cells}),
        points=(*config.points, point),
        wheres=(*config.wheres, ""),
    )
    return make_plan(grown, plan.output, inputs)
