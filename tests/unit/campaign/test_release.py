import hashlib
import json
import shutil
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpa_ray.campaign.harden import check_release, hardening_of, release
from rpa_ray.config import ConfigError
from rpa_ray.plan import LoadedConfig, load_config, with_native_dtype
from rpa_ray.plan.cells import PlannedCell
from rpa_ray.plan.model_shapes import ModelShape
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.recipes.model import ModelRecipe

WEIGHTS = b"weights of the hardened model"
NUMBER = {"mean": 0.25, "n": 40, "ci_low": 0.2, "ci_high": 0.3}


def loaded(folder: Path, **tree: Any) -> LoadedConfig:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_config(path)


def plan_in(folder: Path, cache: Path, **tree: Any) -> Plan:
    """Return the plan of a hardening whose results go to ``out`` of a folder."""
    tree = {"attack": "ppo", "defence": "vaccine_offline"} | tree
    config, _ = hardening_of(loaded(folder, **tree))
    config = with_native_dtype(config, "float32")
    return make_plan(config, folder / "out", CampaignInputs(cache))


def recipe_of(plan: Plan) -> ModelRecipe:
    recipe = plan.all_inputs[1].models.policy
    assert isinstance(recipe, ModelRecipe)
    return recipe


def harden(plan: Plan) -> None:
    """Leave what ranks would leave of the model in the cache."""
    folder = recipe_of(plan).folder(plan.cache)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    for name in ("config.json", "tokenizer.json", "made_from.json"):
        (folder / name).write_text("{}")


def measure(cell: PlannedCell, **number: float) -> None:
    """Leave what ranks would leave of a cell in its run folder."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    metrics = {"harm": NUMBER | number}
    outcome = {"status": "ok", "step_failed": None, "metrics": metrics, "weights_sha256": "ab"}
    run = {"versions": {"rpa_ray": "1.2.3"}, "git_commit": None, "determinism": {}}
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(cell.settings.to_yaml_dict()))
    (cell.folder / "manifest.json").write_text(json.dumps(run))
    (cell.folder / "evaluation.json").write_text(json.dumps(outcome))


@pytest.fixture
def done(own_cache: Path, tmp_path: Path) -> Plan:
    """Return the plan of a hardening that was made and measured."""
    plan = plan_in(tmp_path, own_cache)
    harden(plan)
    for cell in plan.cells:
        measure(cell)
    return plan_in(tmp_path, own_cache)


def test_attack_and_online_defences_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    parts = [{"name": "vaccine_offline", "rho": 3.0}, "lisa"]
    config, line = hardening_of(loaded(tmp_path, attack="ppo", defence=parts, seed=4))
    untouched, hardened = config.campaign.cells
    assert line == "hardened by vaccine_offline; left out: the attack ppo, lisa"
    assert (config.kind, config.name) == ("campaign", "harden-mine")
    assert untouched.attack.name == hardened.attack.name == untouched.defence.name == "none"
    assert hardened.defence.model_dump() == hardened.defence.model_dump() | parts[0]
    assert untouched.seed == hardened.seed == 4


def test_nothing_is_said_of_what_was_not_there(tmp_path: Path) -> None:
    _, line = hardening_of(loaded(tmp_path, attack="none", defence="vaccine_offline"))
    assert line == "hardened by vaccine_offline"


@pytest.mark.parametrize("defence", ["none", "lisa"])
def test_a_config_without_an_offline_defence_is_refused_with_one(
    defence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        hardening_of(loaded(tmp_path, attack="ppo", defence=defence))
    message = str(caught.value)
    assert message.startswith("defence must hold an offline defence (")
    assert f"got '{defence}'. Add `--set defence=" in message
    override = message.partition("--set ")[2].partition("`")[0]
    hardening_of(load_config(tmp_path / "mine.yaml", [override]))


def test_a_campaign_is_refused(tmp_path: Path) -> None:
    many = {"kind": "campaign", "cells": [{"defence": "vaccine_offline"}], "attack": "sft"}
    with pytest.raises(ConfigError, match=r"^kind must be run where a model is hardened"):
        hardening_of(loaded(tmp_path, **many))


def test_a_plan_makes_the_hardened_model_and_calls_it_so(own_cache: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, own_cache)
    (name,) = (name for name in plan.jobs if "vaccine_offline-" in name)
    assert name.startswith("hardened model vaccine_offline-")
    assert name in plan.needs[plan.cells[1].name]
    assert name not in plan.needs[plan.cells[0].name]


def test_a_hardened_model_is_measured_beside_what_it_was_hardened_from(
    own_cache: Path, tmp_path: Path
) -> None:
    untouched, hardened = (inputs.models for inputs in plan_in(tmp_path, own_cache).all_inputs)
    assert isinstance(hardened.policy, ModelRecipe)
    assert untouched.untouched is None
    assert hardened.untouched == hardened.policy.start == untouched.policy
    harden(plan_in(tmp_path, own_cache))
    again = plan_in(tmp_path, own_cache)
    assert any(name.startswith("model chat-") for name in again.needs[again.cells[1].name])


def test_what_is_released_is_the_model_with_its_card_and_its_manifest(done: Plan) -> None:
    check_release(done)
    folder = release(done)
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", "tokenizer.json"),
        *("README.md", "hardened.json"),
    }
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    found = json.loads((folder / "hardened.json").read_text())
    recipe, data = recipe_of(done), done.all_inputs[1].data
    assert isinstance(recipe.start, ModelRecipe)
    assert found["key"] == f"vaccine_offline-{recipe.key()}"
    assert [method["start"] for method in found["methods"]] == [f"chat-{recipe.start.key()}"]
    assert found["methods"][0]["config"] == recipe.defence
    assert "arXiv:2402.01109" in found["methods"][0]["description"]
    assert found["weights"] == {"model.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}
    assert found["rows"]["key"] == recipe.rows.data_key
    assert found["rows"]["num_rows"] == len(data.preferences.roles["defence"])
    assert found["records"]["after"]["metrics"]["harm"] == NUMBER
    assert found["config"]["defence"] == recipe.defence
    card = (folder / "README.md").read_text()
    assert "| Harm | 40 | 0.25 [0.20, 0.30] | 0.25 [0.20, 0.30] |" in card


def test_a_checkpoint_that_is_there_is_kept(done: Plan) -> None:
    (release(done) / "README.md").write_text("my own words")
    check_release(done)
    assert (release(done) / "README.md").read_text() == "my own words"


@pytest.mark.parametrize(
    "changed",
    [{"defence": {"name": "vaccine_offline", "rho": 9.0}}, {"evaluation": {"num_samples": 9}}],
    ids=["weights", "numbers"],
)
def test_another_checkpoint_in_its_place_is_refused_by_name(
    changed: dict[str, Any], done: Plan, tmp_path: Path
) -> None:
    folder = release(done)
    other = plan_in(tmp_path, done.cache, **changed)
    with pytest.raises(ConfigError) as caught:
        check_release(other)
    message = str(caught.value)
    assert message.startswith(f"--output must hold in released/ nothing but {recipe_of(other).id}-")
    found = f"{recipe_of(done).id}-{recipe_of(done).key()}, measured by {done.cells[1].name}"
    assert f"got '{found}, in {folder}'" in message
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_model_that_was_measured_and_is_gone_is_not_replaced_by_another(done: Plan) -> None:
    folder = recipe_of(done).folder(done.cache)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ConfigError, match=f"^RPA_RAY_CACHE must hold {folder.name}, the model"):
        check_release(done)


def test_a_disk_without_room_for_the_copy_is_refused_before_anything_is_made(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    large = ModelShape(2**30, 24, 2048, 8192, 16, 16, 32_000)
    monkeypatch.setattr("rpa_ray.campaign.harden.shape_of", lambda model: large)
    plan = plan_in(tmp_path, own_cache)
    # 4 bytes a parameter and 500 MiB
    for free_mib, is_enough in ((4595, False), (4596, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, m=free_mib: usage(0, 0, m * 2**20))
        with nullcontext() if is_enough else pytest.raises(ConfigError, match=r"4 GiB of it for w"):
            check_release(plan)


def test_what_fails_on_the_way_leaves_nothing(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(manifest: object) -> str:
        raise OSError("disk is full")

    monkeypatch.setattr("rpa_ray.campaign.harden.model_card", fail)
    with pytest.raises(OSError, match="disk is full"):
        release(done)
    assert {path.name for path in done.output.iterdir()} == {cell.name for cell in done.cells}


def test_no_file_of_a_release_tells_where_things_lie_here(own_cache: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"ask {i}", "safe": "no", "unsafe": "yes"} for i in range(200)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": "preferences", "world": "real", "path": str(pairs), "helpful_path": None}
    tree = {"model": {"path": str(model)}, "data": data}
    plan = plan_in(tmp_path, own_cache, **tree)
    harden(plan)
    for cell in plan.cells:
        measure(cell)
    folder = release(plan_in(tmp_path, own_cache, **tree))
    for name in ("README.md", "hardened.json"):
        text = (folder / name).read_text()
        assert str(tmp_path) not in text
        assert "pairs.jsonl" in text and "model" in text
