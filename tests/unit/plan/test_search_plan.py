"""What is planned of a search, before and after an interruption."""

import json
from pathlib import Path

import yaml

from rpa_ray.plan import LoadedConfig, load_config
from rpa_ray.plan.cells import plan_cells
from rpa_ray.plan.plan import make_plan
from rpa_ray.plan.points import with_points, with_points_of, write_points
from rpa_ray.plan.table import plan_caption, plan_table, search_notes
from rpa_ray.recipes.cell_models import CampaignInputs

RATE = "attack.learning_rate"
SEARCH = """
kind: sweep
attack: {attack}
model: {{dtype: float32}}
sweep: {{search: optuna, num_trials: 24, {rate}: {{log: [1.0e-6, 1.0e-3]}}{more}}}
"""
LATER = {RATE: 2e-5}


def load(folder: Path, *overrides: str, attack: str = "sft", more: str = "") -> LoadedConfig:
    (folder / "rate.yaml").write_text(SEARCH.format(attack=attack, rate=RATE, more=more))
    return load_config(folder / "rate.yaml", overrides)


def test_a_search_goes_on_with_the_points_that_were_written(tmp_path: Path) -> None:
    config = load(tmp_path)
    write_points(tmp_path, with_points(config, [*config.points, LATER]))
    found = with_points_of(tmp_path, load(tmp_path, "cluster.parallel_cells=1"))
    assert found.points == (*config.points, LATER)
    assert found.campaign.cells[-1].to_yaml_dict()["attack"]["learning_rate"] == 2e-5
    assert (len(found.wheres), found.num_undrawn) == (11, 13)


def test_more_trials_go_on_and_fewer_are_the_first(tmp_path: Path) -> None:
    config = load(tmp_path)
    write_points(tmp_path, with_points(config, [*config.points, LATER]))
    more, fewer = (
        with_points_of(tmp_path, load(tmp_path, f"sweep.num_trials={num}")) for num in (48, 4)
    )
    assert (more.points[-1], more.num_undrawn) == (LATER, 37)
    assert (fewer.points, fewer.num_undrawn) == (config.points[:4], 0)


def test_the_points_of_another_search_are_not_taken(tmp_path: Path) -> None:
    config = load(tmp_path)
    write_points(tmp_path, with_points(config, [*config.points, LATER]))
    for other in (
        load(tmp_path, "data.num_samples=32"),
        load(tmp_path, more=", seed: 1"),
        load(tmp_path, more=", data.rho: [0.5, 1]"),
    ):
        assert with_points_of(tmp_path, other).points == other.points


def test_a_plan_tells_of_trials_whose_points_are_not_known(
    tmp_path: Path, world_cache: Path
) -> None:
    plan = make_plan(load(tmp_path), tmp_path / "out", CampaignInputs(world_cache))
    cells = [list(map(str, column.cells)) for column in plan_table(plan).columns]
    last = [column[-1] for column in cells]
    assert last[:3] == ["trials", "14 at points that follow from the results", ""]
    one = float(cells[3][-2])
    assert abs(float(last[3]) - 14 * one) <= 14
    assert plan_caption(plan).startswith("24 trials, 0 done; ")
    assert search_notes(plan) == [
        "search: optuna, 24 trials, 14 of them at points that follow from the results of others",
        f"varied: {RATE} log 1e-06 to 0.001",
    ]


def test_a_plan_names_the_models_that_follow_from_values_not_drawn_yet(
    tmp_path: Path, world_cache: Path
) -> None:
    config = load(tmp_path, attack="ppo", more=", scheduler: asha, data.rho: {uniform: [0, 1]}")
    plan = make_plan(config, tmp_path / "out", CampaignInputs(world_cache))
    how, varied, models = search_notes(plan)
    assert how.endswith("; asha may stop a trial after any look, which shortens the time")
    assert varied.endswith("; data.rho uniform 0 to 1")
    told = "depends on values that are not drawn yet: models (10 reward for 10 trials)"
    assert models.startswith(told)


def test_a_grid_has_no_notes_of_a_search(tmp_path: Path, world_cache: Path) -> None:
    (tmp_path / "grid.yaml").write_text("kind: sweep\nattack: sft\nsweep: {seed: [0, 1]}\n")
    config = load_config(tmp_path / "grid.yaml")
    assert search_notes(make_plan(config, tmp_path / "out", CampaignInputs(world_cache))) == []


def test_a_stopped_trial_is_done_only_while_there_is_a_scheduler(tmp_path: Path) -> None:
    scheduled, free = load(tmp_path, more=", scheduler: asha"), load(tmp_path)
    first = plan_cells(scheduled, tmp_path)[0]
    first.folder.mkdir()
    (first.folder / "config.yaml").write_text(yaml.safe_dump(first.settings.to_yaml_dict()))
    (first.folder / "evaluation.json").write_text(json.dumps({"status": "stopped"}))
    assert [cell.done for cell in plan_cells(scheduled, tmp_path)] == [True] + [False] * 9
    assert [cell.done for cell in plan_cells(free, tmp_path)] == [False] * 10
