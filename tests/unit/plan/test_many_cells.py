"""What is done for each cell of a campaign is done once, however many others there are."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.campaign.manifest import _git_commit, manifest
from rpa_ray.config import ExperimentSettings
from rpa_ray.data import split
from rpa_ray.plan import LoadedConfig, cells, load_config
from rpa_ray.plan.cells import plan_cells
from rpa_ray.plan.checks import context
from rpa_ray.plan.checks.data import check_data
from rpa_ray.recipes.cell_models import CampaignInputs

ATTACKED = "kind: campaign\nattack: {attack}\nseeds: {seeds}\ncells: [{{}}, {{defence: freeze}}]\n"


def campaign(folder: Path, num: int, attack: str = "dpo", **data: object) -> LoadedConfig:
    path = folder / f"{num}.yaml"
    text = ATTACKED.format(attack=attack, seeds=list(range(num // 2)))
    path.write_text(text + f"data: {json.dumps(data)}\n", encoding="utf-8")
    return load_config(path)


def num_calls(do: Callable[[], object]) -> int:
    """Return how many functions are called, those of C among them."""
    num = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal num
        num += event.endswith("call")

    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(None)
    return num


@pytest.fixture
def preferences(tmp_path: Path, world_cache: Path) -> dict[str, object]:
    """Return settings of data: 400 pairs in a file."""
    rows = [{"prompt": f"ask {i}", "safe": "I cannot", "unsafe": f"do {i}"} for i in range(400)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (helpful,) = world_cache.glob("world-*/data/helpful")
    place: dict[str, object] = {"path": str(file), "helpful_path": str(helpful)}
    return {"name": "preferences", "world": "real", "num_samples": 40, **place}


def test_twice_as_many_cells_are_named_by_twice_as_many_calls(tmp_path: Path) -> None:
    few, many = campaign(tmp_path, 20), campaign(tmp_path, 40)
    plan_cells(few, tmp_path)  # what is found once for a process
    ratio = num_calls(lambda: plan_cells(many, tmp_path)) / num_calls(
        lambda: plan_cells(few, tmp_path)
    )
    assert ratio == pytest.approx(2, abs=0.1)


def test_no_cell_is_compared_with_every_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr(ExperimentSettings, "__eq__", lambda *pair: compared.append(pair))
    campaign(tmp_path, 20)
    assert not compared


def test_what_lies_under_a_path_is_looked_at_once_for_all_cells(
    tmp_path: Path, preferences: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(cells, "content_key", lambda path: str(asked.append(path)))
    plan_cells(campaign(tmp_path, 20, **preferences), tmp_path)
    assert sorted(map(str, asked)) == sorted(
        str(preferences[key]) for key in ("path", "helpful_path")
    )


def test_the_rows_of_a_campaign_are_hashed_once_and_the_commit_is_asked_once(
    tmp_path: Path,
    world_cache: Path,
    preferences: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = campaign(tmp_path, 6, **preferences)
    inputs = CampaignInputs(world_cache)
    hashed, asked = [], []
    digest, run = split.digest_of_rows, subprocess.run
    monkeypatch.setattr(
        split, "digest_of_rows", lambda rows: hashed.append(len(rows)) or digest(rows)
    )
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **options: asked.append(args) or run(*args, **options)
    )
    _git_commit.cache_clear()
    found = [manifest(inputs.of(cell), "") for cell in loaded.campaign.cells]
    assert [one["seeds"]["attack"] for one in found] == [0, 1, 2, 0, 1, 2]
    assert len(hashed) == len(split.ROLES)
    assert len(asked) == 1


def test_the_prompts_of_cells_are_counted_and_drawn_once(
    tmp_path: Path,
    world_cache: Path,
    preferences: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = campaign(tmp_path, 8, attack="ppo", **preferences)
    inputs = CampaignInputs(world_cache)
    counted: list[str] = []
    drawn: list[int] = []
    count, order = context._counted, split.hash_order
    context._known.cache_clear()
    monkeypatch.setattr(context, "_counted", lambda *args: counted.extend(args[2]) or count(*args))
    monkeypatch.setattr(
        split, "hash_order", lambda *args, **how: drawn.append(how["seed"]) or order(*args, **how)
    )
    for cell in loaded.campaign.cells:
        reward_model = cell.data.reward_model.model_copy(update={"num_pairs": 16})
        data = cell.data.model_copy(update={"reward_model": reward_model})
        evaluation = cell.evaluation.model_copy(update={"judge": judge_of_few_rows(cell)})
        check_data(inputs.of(cell.model_copy(update={"data": data, "evaluation": evaluation})))
    assert drawn == [0, 1, 2, 3]
    assert counted
    assert len(counted) == len(set(counted))


def judge_of_few_rows(cell: ExperimentSettings) -> Any:
    return cell.evaluation.judge.model_copy(update={"num_rows": 16})
