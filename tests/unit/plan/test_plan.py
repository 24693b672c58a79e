import io
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rpa_ray.campaign.manifest import manifest
from rpa_ray.config import ConfigError
from rpa_ray.plan import LoadedConfig, load_config
from rpa_ray.plan.cells import plan_cells
from rpa_ray.plan.cost import START_S
from rpa_ray.plan.plan import make_plan
from rpa_ray.plan.table import counted, plan_caption, plan_table
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.to_make import Cell

COMMIT = "0123456789abcdef0123456789abcdef01234567"

GRID = """
kind: campaign
attack: ppo
data: {num_samples: 1000}
model: {dtype: float32}
cluster: {parallel_cells: 1}
cells: [{attack: none}, {}, {defence: {name: refusal_loss, alpha: 3}}]
"""


@pytest.fixture
def grid(tmp_path: Path) -> LoadedConfig:
    (tmp_path / "grid.yaml").write_text(GRID)
    return load_config(tmp_path / "grid.yaml")


def rows(config: LoadedConfig, output: Path, cache: Path) -> tuple[list[list[str]], str]:
    plan = make_plan(config, output, CampaignInputs(cache))
    table = plan_table(plan)
    console = Console(file=io.StringIO(), width=200)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    console.print(table)
    return [list(row) for row in zip(*cells, strict=True)], plan_caption(plan)


def seconds_of(caption: str) -> float:
    """Return the time that a caption tells, which is rounded."""
    number, unit = re.findall(r"about (\d+) (s|min) on this machine", caption)[0]
    return float(number) * (60 if unit == "min" else 1)


HARDENED = """
kind: campaign
attack: none
model: {dtype: float32}
cells:
  - {defence: rmu}
  - {defence: {name: tar, num_steps: 25}}
  - {defence: {name: tar, num_steps: 25, learning_rate: 3.0e-4}}
  - {defence: [{name: repnoise, num_steps: 40}, tar]}
  - {defence: [{name: repnoise, num_steps: 50}, tar]}
"""


def test_hardened_models_of_one_defence_are_told_apart_by_their_settings(
    tmp_path: Path, world_cache: Path
) -> None:
    (tmp_path / "hardened.yaml").write_text(HARDENED)
    lines, _ = rows(load_config(tmp_path / "hardened.yaml"), tmp_path / "out", world_cache)
    assert [line[1] for line in lines if line[0] == "harden"] == [
        "rmu",
        "tar learning_rate=5e-05",
        "tar learning_rate=0.0003",
        "repnoise num_steps=40",
        "repnoise+tar repnoise.num_steps=40",
        "repnoise num_steps=50",
        "repnoise+tar repnoise.num_steps=50",
    ]


def finish(config: LoadedConfig, output: Path) -> None:
    for cell in plan_cells(config, output):
        cell.folder.mkdir(parents=True)
        (cell.folder / "config.yaml").write_text(yaml.safe_dump(cell.settings.to_yaml_dict()))
        (cell.folder / "evaluation.json").write_text(json.dumps({"status": "ok"}))


def test_each_model_is_planned_once_before_the_cells_in_the_order_of_making(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    lines, _ = rows(grid, tmp_path / "out", world_cache)
    assert [line[0] for line in lines] == ["make"] * 8 + ["cell"] * 3
    assert [line[1] for line in lines[:8]] == [
        "base",
        "chat",
        "reward_model-rho1",
        "other_base",
        "judge",
        "second_judge",
        "perplexity",
        "helpfulness",
    ]


def test_a_training_that_passes_many_times_a_step_says_so(
    tmp_path: Path, world_cache: Path
) -> None:
    (tmp_path / "both.yaml").write_text("attack: sft\ndefence: [repnoise, tar]\n")
    lines, _ = rows(load_config(tmp_path / "both.yaml"), tmp_path / "out", world_cache)
    steps = {line[1]: line[2] for line in lines if line[0] == "harden"}
    # four adversaries of 64 steps and 16 looks of two passes, and 1.4 of its own
    assert (steps["repnoise"], steps["repnoise+tar"]) == ("877 steps", "100 steps of 385 passes")


def test_a_cell_is_told_by_what_is_its_own(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    lines, _ = rows(grid, tmp_path / "out", world_cache)
    assert [line[1:3] for line in lines[8:]] == [
        ["none", "0 samples"],
        ["ppo none", "1000 samples"],
        ["ppo refusal_loss alpha=3", "1000 samples"],
    ]


def test_the_caption_adds_up_the_machine_and_the_time(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    lines, caption = rows(grid, tmp_path / "out", world_cache)
    assert caption.startswith("1.75 CPUs, about 6.0 GiB memory; about ")
    # The shown seconds are rounded.
    seconds = START_S + sum(float(line[3]) for line in lines)
    assert seconds_of(caption) == pytest.approx(seconds, abs=35)
    assert " on this machine; " in caption
    assert caption.endswith(f"results in {tmp_path / 'out'}")


def test_cells_side_by_side_take_more_of_the_machine_and_less_time(
    tmp_path: Path, world_cache: Path
) -> None:
    captions = []
    for num in (1, 2):
        (tmp_path / "grid.yaml").write_text(GRID)
        overrides = [f"cluster.parallel_cells={num}", "data.num_samples=8000"]
        config = load_config(tmp_path / "grid.yaml", overrides)
        captions.append(rows(config, tmp_path / "out", world_cache)[1])
    assert captions[1].startswith("2 cells at a time, 3.5 CPUs, about 12.0 GiB memory; about ")
    assert seconds_of(captions[1]) < seconds_of(captions[0])


def test_what_is_done_costs_nothing_and_needs_no_model(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    finish(grid, tmp_path / "out")
    lines, caption = rows(grid, tmp_path / "out", world_cache)
    assert [(line[0], line[3]) for line in lines] == [("cell", "done")] * 3
    assert "nothing is left to do" in caption


def test_a_sweep_is_planned_by_its_trials(tmp_path: Path, world_cache: Path) -> None:
    text = "kind: sweep\nattack: ppo\nmodel: {dtype: float32}\nsweep: {attack.kl_coef: [0.1, 1]}\n"
    (tmp_path / "kl.yaml").write_text(text)
    config = load_config(tmp_path / "kl.yaml")
    lines, caption = rows(config, tmp_path / "out", world_cache)
    assert [line[1] for line in lines if line[0] == "trial"] == [
        "ppo none kl_coef=0.1",
        "ppo none kl_coef=1",
    ]
    assert caption.startswith("2 trials, 0 done; ")
    finish(config, tmp_path / "out")
    assert rows(config, tmp_path / "out", world_cache)[1].startswith("2 trials, 2 done; ")


def test_a_reward_model_is_made_only_where_an_attack_asks_for_rewards(
    grid: LoadedConfig, world_cache: Path
) -> None:
    untouched, attacked, _ = grid.campaign.cells
    assert CellInputs(untouched, world_cache).models.reward_model is None
    assert CellInputs(attacked, world_cache).models.reward_model is not None


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_longest_cells_begin_first_estimated_or_not(
    dtype: str, tmp_path: Path, world_cache: Path
) -> None:
    (tmp_path / "attacks.yaml").write_text(
        f"kind: campaign\ndata: {{num_samples: 1000}}\nmodel: {{dtype: {dtype}}}\n"
        "cells: [{attack: none}, {attack: sft}, {attack: {name: grpo, group_size: 8}},"
        " {attack: ppo}, {attack: dpo}]\n"
    )
    plan = make_plan(
        load_config(tmp_path / "attacks.yaml"), tmp_path / "out", CampaignInputs(world_cache)
    )
    names = [cell.settings.attack.name for cell in plan.todo]
    if dtype == "auto":  # as on the nodes of a cluster: nobody has asked them yet
        assert names == ["sft", "grpo", "ppo", "dpo", "none"]
    else:
        assert names == ["grpo", "ppo", "dpo", "sft", "none"]


@pytest.fixture
def _hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the Hub know every model, at the newest commit ``COMMIT``."""

    def commit(repo: str, revision: str | None) -> str:
        return COMMIT if revision in {None, "main"} else str(revision)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("rpa_ray.data.hub_model._commit", commit)


@pytest.mark.usefixtures("_hub")
def test_a_model_of_the_hub_is_planned_recorded_and_run_at_one_commit(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    config = load_config(tmp_path / "grid.yaml", ["model.path=owner/name"])
    plan = make_plan(config, tmp_path / "out", CampaignInputs(world_cache))
    pinned = f"owner/name@{COMMIT}"
    assert {cell.settings.model.path for cell in plan.cells} == {pinned}
    assert {job.settings.model.path for job in plan.jobs.values() if isinstance(job, Cell)} == {
        pinned
    }
    assert all(cell.name.startswith("name_") for cell in plan.cells)
    found = manifest(plan.inputs.of(plan.cells[1].settings), "")
    assert found["hub_models"] == {"model.path": pinned}
    assert found["models"]["policy"] == pinned
    again = make_plan(plan.config, tmp_path / "out", CampaignInputs(world_cache))
    assert again.cells == plan.cells


@pytest.mark.usefixtures("_hub")
def test_other_commits_are_other_cells_and_two_names_of_one_are_refused(
    tmp_path: Path, world_cache: Path
) -> None:
    def plan_of(*revisions: str) -> list[str]:
        cells = ", ".join(f"{{model: {{path: owner/name{one}}}}}" for one in revisions)
        (tmp_path / "two.yaml").write_text(f"kind: campaign\nattack: none\ncells: [{cells}]\n")
        config = load_config(tmp_path / "two.yaml")
        plan = make_plan(config, tmp_path / "out", CampaignInputs(world_cache))
        return [cell.name for cell in plan.cells]

    first, second = plan_of("@main", f"@{COMMIT[::-1]}")
    assert first != second
    with pytest.raises(ConfigError, match=r"cells\[1\] must differ from every other cell"):
        plan_of("", "@main")


def test_the_type_of_weights_changes_the_plan_and_one_undecided_is_not_estimated(
    tmp_path: Path, world_cache: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    tables = {}
    for dtype in ("float32", "bfloat16", "auto"):
        config = load_config(tmp_path / "grid.yaml", [f"model.dtype={dtype}"])
        tables[dtype] = rows(config, tmp_path / "out", world_cache)
    shown = {dtype: [line[3] for line in lines[8:]] for dtype, (lines, _) in tables.items()}
    assert shown["float32"] != shown["bfloat16"]
    assert shown["auto"] == ["-", "-", "-"]
    assert "and 3 steps that are not estimated" in tables["auto"][1]
    # The models to make learn in float32 whatever the cells do.
    made = {dtype: [line[3] for line in lines[:8]] for dtype, (lines, _) in tables.items()}
    assert made["float32"] == made["bfloat16"] == made["auto"]


def test_one_of_something_is_no_plural() -> None:
    assert [counted(num, "CPU") for num in (1, 1.75, 2)] == ["1 CPU", "1.75 CPUs", "2 CPUs"]
