"""A campaign at work that a search adds trials to."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.campaign import growing as growing_module
from rpa_ray.campaign.growing import Growing
from rpa_ray.campaign.progress import Expected
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue
from rpa_ray.plan import load_config
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.plan.preflight import with_trial
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.recipes.to_make import Cell, ModelJob

SEARCH = """
kind: sweep
attack: ppo
model: {dtype: float32}
evaluation: {num_prompts: 4}
sweep: {search: optuna, num_trials: 12, data.rho: {uniform: [0, 1]}}
"""
LATER = {"data.rho": 0.125}


@pytest.fixture
def plan(tmp_path: Path, own_cache: Path) -> Plan:
    (tmp_path / "rho.yaml").write_text(SEARCH)
    config = load_config(tmp_path / "rho.yaml")
    return make_plan(config, tmp_path / "out", CampaignInputs(own_cache))


def test_a_later_trial_is_planned_as_the_others_were(plan: Plan) -> None:
    longer = with_trial(plan, LATER)
    *known, new = longer.cells
    assert [cell.name for cell in known] == [cell.name for cell in plan.cells]
    assert (new.settings.data.rho, new.settings.model.dtype) == (0.125, "float32")
    assert longer.config.points == (*plan.config.points, LATER)
    assert longer.config.num_undrawn == 1


def test_a_trial_that_is_added_begins_after_what_it_needs_is_made(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_module, "ask", lambda queue, name, *a: getattr(queue, name)(*a))
    told: list[Mapping[str, Expected]] = []
    begun: list[str] = []
    held: list[Plan] = []
    growing = Growing(
        plan,
        expect=lambda jobs, num: told.append(jobs),
        begin=lambda longer, cell: begun.append(cell.name),
        hold=held.append,
    )
    longer = with_trial(plan, LATER)
    queue = JobQueue({}, is_open=True)
    growing.add(longer, queue)
    name = longer.cells[-1].name
    assert (growing.plan, held, begun) == (longer, [longer], [name])
    assert told[-1].keys() - told[0].keys() == growing.jobs.keys() - plan.jobs.keys()
    made = queue.take(0)
    assert isinstance(made, str) and isinstance(queue.added(made), ModelJob)
    queue.release([name])
    assert queue.take(1) == ASK_AGAIN
    queue.finish(0)
    assert queue.take(1) == name
    cell: Any = queue.added(name)
    assert isinstance(cell, Cell) and cell.settings.data.rho == 0.125
    names: Collection[str] = growing.jobs
    assert {made, name} <= set(names)
