import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rpa_ray.cell_models import cell_models
from rpa_ray.cells import plan_cells
from rpa_ray.config import LoadedConfig, load_config
from rpa_ray.plan import longest_first, plan_table

GRID = """
kind: campaign
attack: ppo
data: {num_samples: 1000}
cluster: {parallel_cells: 1}
cells: [{attack: none}, {}, {defence: {name: refusal_loss, alpha: 3}}]
"""


@pytest.fixture
def grid(tmp_path: Path) -> LoadedConfig:
    (tmp_path / "grid.yaml").write_text(GRID)
    return load_config(tmp_path / "grid.yaml")


def rows(config: LoadedConfig, output: Path, cache: Path) -> tuple[list[list[str]], str]:
    table = plan_table(config, output, cache)
    console = Console(file=io.StringIO(), width=200)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    console.print(table)
    return [list(row) for row in zip(*cells, strict=True)], str(table.caption)


def finish(config: LoadedConfig, output: Path) -> None:
    for cell in plan_cells(config, output):
        cell.folder.mkdir(parents=True)
        (cell.folder / "config.yaml").write_text(yaml.safe_dump(cell.settings.to_yaml_dict()))
        (cell.folder / "evaluation.json").write_text(json.dumps({"status": "ok"}))


def test_each_model_is_planned_once_before_the_cells(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    lines, _ = rows(grid, tmp_path / "out", world_cache)
    assert [line[0] for line in lines] == ["make"] * 6 + ["cell"] * 3
    assert [line[1] for line in lines[:6]] == [
        "base",
        "chat",
        "judge",
        "perplexity",
        "helpfulness",
        "reward_model-rho1",
    ]


def test_a_cell_is_told_by_what_is_its_own(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    lines, _ = rows(grid, tmp_path / "out", world_cache)
    assert lines[6][1:3] == ["chat: none, none, seed 0", "0 samples"]
    assert lines[7][1:3] == ["chat: ppo, none, seed 0", "1000 samples"]
    assert lines[8][1].startswith("chat: ppo, refusal_loss, ")
    assert "defence.alpha=3" in lines[8][1]


def test_the_caption_adds_up_the_machine_and_the_minutes(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    lines, caption = rows(grid, tmp_path / "out", world_cache)
    assert caption.startswith("1.75 CPUs, about 6.0 GiB memory; about ")
    # 25 s to start; the shown seconds are rounded.
    minutes = (25 + sum(float(line[3]) for line in lines)) / 60
    planned = float(caption.partition("; about ")[2].partition(" min")[0])
    assert planned == pytest.approx(minutes, abs=0.6)
    assert caption.endswith(f"results in {tmp_path / 'out'}")


def test_cells_side_by_side_take_more_of_the_machine_and_less_time(
    tmp_path: Path, world_cache: Path
) -> None:
    captions = []
    for num in (1, 2):
        (tmp_path / "grid.yaml").write_text(GRID)
        config = load_config(tmp_path / "grid.yaml", [f"cluster.parallel_cells={num}"])
        captions.append(rows(config, tmp_path / "out", world_cache)[1])
    assert captions[1].startswith("2 cells at a time, 3.5 CPUs, about 12.0 GiB memory; about ")
    minutes = [float(c.partition("; about ")[2].partition(" min")[0]) for c in captions]
    assert minutes[1] < minutes[0]


def test_what_is_done_costs_nothing_and_needs_no_model(
    grid: LoadedConfig, tmp_path: Path, world_cache: Path
) -> None:
    finish(grid, tmp_path / "out")
    lines, caption = rows(grid, tmp_path / "out", world_cache)
    assert [(line[0], line[3]) for line in lines] == [("cell", "done")] * 3
    assert "about 0 min" in caption


def test_a_sweep_is_planned_by_its_trials(tmp_path: Path, world_cache: Path) -> None:
    text = "kind: sweep\nattack: ppo\nsweep: {attack.kl_coef: [0.1, 1]}\n"
    (tmp_path / "kl.yaml").write_text(text)
    config = load_config(tmp_path / "kl.yaml")
    lines, caption = rows(config, tmp_path / "out", world_cache)
    assert [line[1] for line in lines if line[0] == "trial"] == [
        "chat: ppo, none, attack.kl_coef=0.1, seed 0",
        "chat: ppo, none, attack.kl_coef=1.0, seed 0",
    ]
    assert caption.startswith("2 trials, 0 done; ")
    finish(config, tmp_path / "out")
    assert rows(config, tmp_path / "out", world_cache)[1].startswith("2 trials, 2 done; ")


def test_a_reward_model_is_made_only_where_an_attack_asks_for_rewards(
    grid: LoadedConfig, world_cache: Path
) -> None:
    untouched, attacked, _ = grid.campaign.cells
    assert cell_models(untouched, world_cache).reward_model is None
    assert cell_models(attacked, world_cache).reward_model is not None


def test_the_longest_cells_begin_first(tmp_path: Path) -> None:
    (tmp_path / "attacks.yaml").write_text(
        "kind: campaign\ndata: {num_samples: 1000}\n"
        "cells: [{attack: none}, {attack: sft}, {attack: {name: grpo, group_size: 8}},"
        " {attack: ppo}, {attack: dpo}]\n"
    )
    cells = plan_cells(load_config(tmp_path / "attacks.yaml"), tmp_path / "out")
    names = [cell.settings.attack.name for cell in longest_first(cells)]
    assert names == ["grpo", "ppo", "sft", "dpo", "none"]
