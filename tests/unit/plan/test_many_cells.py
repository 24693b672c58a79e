"""What is done for each cell of a campaign is done once, however many others there are."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from rpa_ray.campaign.manifest import _git_commit, manifest
from rpa_ray.config import ExperimentSettings
from rpa_ray.data.order import digest_of_rows, hash_order
from rpa_ray.data.split import ROLES
from rpa_ray.plan import LoadedConfig, cells, load_config
from rpa_ray.plan.cells import plan_cells
from rpa_ray.plan.checks import context
from rpa_ray.plan.checks.data import check_data
from rpa_ray.recipes.cell_models import CampaignInputs

ATTACKED = "kind: campaign\nattack: {attack}\nseeds: {seeds}\ncells: [{{}}, {{defence: freeze}}]\n"


def campaign(
    folder: Path, num: int, data: dict[str, object] | None = None, attack: str = "dpo"
) -> LoadedConfig:
    path = folder / f"{num}.yaml"
    text = ATTACKED.format(attack=attack, seeds=list(range(num // 2)))
    path.write_text(text + f"data: {json.dumps(data or {})}\n", encoding="utf-8")
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
    compares = Mock(return_value=False)
    monkeypatch.setattr(ExperimentSettings, "__eq__", lambda *pair: compares(*pair))
    campaign(tmp_path, 20)
    compares.assert_not_called()


def test_what_lies_under_a_path_is_looked_at_once_for_all_cells(
    tmp_path: Path, preferences: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Mock(return_value="its key")
    monkeypatch.setattr(cells, "content_key", asks)
    plan_cells(campaign(tmp_path, 20, preferences), tmp_path)
    assert sorted(str(call.args[0]) for call in asks.call_args_list) == sorted(
        str(preferences[key]) for key in ("path", "helpful_path")
    )


def test_the_rows_of_a_campaign_are_hashed_once_and_the_commit_is_asked_once(
    tmp_path: Path,
    world_cache: Path,
    preferences: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = campaign(tmp_path, 6, preferences)
    inputs = CampaignInputs(world_cache)
    hashes, asks = Mock(wraps=digest_of_rows), Mock(wraps=subprocess.run)
    monkeypatch.setattr("rpa_ray.data.split.digest_of_rows", hashes)
    monkeypatch.setattr(subprocess, "run", asks)
    _git_commit.cache_clear()
    found = [manifest(inputs.of(cell), "") for cell in loaded.campaign.cells]
    assert [one["seeds"]["attack"] for one in found] == [0, 1, 2, 0, 1, 2]
    assert hashes.call_count == len(ROLES)
    asks.assert_called_once()


def test_the_prompts_of_cells_are_counted_and_drawn_once(
    tmp_path: Path,
    world_cache: Path,
    preferences: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_pairs = {"reward_model": {"num_pairs": 16}}
    loaded = campaign(tmp_path, 8, preferences | few_pairs, attack="ppo")
    inputs = CampaignInputs(world_cache)
    counts, draws = Mock(wraps=context._counted), Mock(wraps=hash_order)
    context._known.cache_clear()
    monkeypatch.setattr(context, "_counted", counts)
    monkeypatch.setattr("rpa_ray.data.split.hash_order", draws)
    for cell in loaded.campaign.cells:
        judge = cell.evaluation.judge.model_copy(update={"num_rows": 16})
        evaluation = cell.evaluation.model_copy(update={"judge": judge})
        check_data(inputs.of(cell.model_copy(update={"evaluation": evaluation})))
    drawn = [(call.kwargs["purpose"], call.kwargs["seed"]) for call in draws.call_args_list]
    attacks = [("draw:attack", seed) for seed in range(4)]
    assert sorted(drawn) == [*attacks, ("draw:reward_model", 0)]
    counted = [prompt for call in counts.call_args_list for prompt in call.args[2]]
    assert counted
    assert len(counted) == len(set(counted))
