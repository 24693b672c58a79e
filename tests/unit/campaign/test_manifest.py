import hashlib
import json
from pathlib import Path

import pytest
import torch

from rpa_ray.campaign.manifest import determinism, manifest
from rpa_ray.data.split import ROLES
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.world.datasets import world_folder


def test_a_manifest_names_versions_seeds_and_data(world_cache: Path) -> None:
    settings = parse_tree({"seed": 3})
    found = manifest(CellInputs(settings, world_cache), "rpa-ray run mine.yaml")
    assert found["command"] == "rpa-ray run mine.yaml"
    assert found["versions"]["torch"] == torch.__version__
    assert found["seeds"] == {"attack": 3, "world": 0}
    assert set(found["splits"]) >= {"attack", "defence", "evaluation"}
    assert found["determinism"] == determinism(settings)


def test_a_manifest_names_source_revision_and_content_of_every_role(world_cache: Path) -> None:
    found = manifest(CellInputs(parse_tree({}), world_cache), "rpa-ray run mine.yaml")
    world = world_folder(0, world_cache).name
    assert set(found["splits"]) == set(ROLES)
    for split in found["splits"].values():
        assert (split["source"], split["revision"]) == ("embedded/beavertails", world)
        assert split["rows"] == split["prompts"] > 0
        assert len(split["sha256"]) == 64
    assert len({split["sha256"] for split in found["splits"].values()}) == len(ROLES)
    asked = found["evaluation_prompts"]
    assert {kind: part["source"] for kind, part in asked.items()} == {
        "restricted": "embedded/beavertails",
        "harmless": "embedded/helpful",
    }
    assert [part["prompts"] for part in asked.values()] == [362, 178]
    assert found["evaluation_split"] == "test"
    models = found["models"]
    assert {"policy", "judge", "second_judge", "perplexity", "helpfulness"} <= set(models)
    assert models["judge"].startswith("judge-")
    assert models["judge"].partition("-")[2] != models["second_judge"].partition("-")[2]


def test_a_manifest_tells_the_hash_of_a_file(world_cache: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i}", "safe": "no", "unsafe": "yes"} for i in range(200)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (helpful,) = world_cache.glob("world-*/data/helpful")
    data = {"name": "preferences", "world": "real", "path": str(file), "helpful_path": str(helpful)}
    settings = parse_tree({"data": data, "evaluation": {"num_prompts": 10}})
    found = manifest(CellInputs(settings, world_cache), "")
    expected = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert {split["revision"] for split in found["splits"].values()} == {expected}
    assert found["splits"]["attack"]["source"] == str(file)
    assert found["evaluation_prompts"]["harmless"]["source"] == str(helpful)
    assert found["evaluation_prompts"]["restricted"]["prompts"] == 10


def test_a_manifest_says_in_words_what_of_the_embedded_world_measures_real_text(
    world_cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"ask {i}", "safe": "no", "unsafe": f"yes {i}"} for i in range(200)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": "preferences", "world": "real", "path": str(file), "helpful_path": None}
    evaluation = {"second_judge": {"path": "/own", "trained": True}}
    settings = parse_tree({"attack": "ppo", "data": data, "evaluation": evaluation})
    found = manifest(CellInputs(settings, world_cache), "")["made_from"]
    assert found["judge"] == "(on the embedded other_base)"
    assert found["second_judge"] == "/own"
    assert found["perplexity"] == "the embedded language model"
    assert "helpfulness" not in found
    assert "made_from" not in manifest(CellInputs(parse_tree({}), world_cache), "")


def test_runs_on_cpus_are_promised_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = determinism(parse_tree({"cluster": {"num_ranks": 2, "zero_stage": 3}}))
    assert (found["same_bits"], found["broken_by"]) == (True, [])
    assert found["same_bits_need"]["num_ranks"] == 2
    assert found["same_bits_need"]["zero_stage"] == 3


@pytest.mark.parametrize("key", ["gpus_per_rank", "gpus_per_rollout_worker"])
def test_what_breaks_the_promise_on_gpus_is_named(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = determinism(parse_tree({"cluster": {key: 1.0}}))
    assert found["same_bits"] is False
    assert any("atomics" in reason for reason in found["broken_by"])
