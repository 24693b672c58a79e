"""A cell whose models are named by Hub ids, which every process finds in its cache of the Hub."""

import json
from pathlib import Path

import pytest
from command_line import run_campaign
from huggingface_hub.constants import REPO_ID_SEPARATOR

from rpa_ray.world.datasets import build_world
from rpa_ray.world.shipped import SHIPPED, place_shipped

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.timeout(900)


def snapshot(home: Path, name: str, cache: Path) -> str:
    """Put a model that comes with the package where the Hub keeps one; return its Hub id."""
    (shipped,) = SHIPPED.glob(f"{name}-*")
    place_shipped(build_world(0, cache), cache, [shipped.name])
    folder = cache / shipped.name
    repo = home / "hub" / REPO_ID_SEPARATOR.join(("models", "somebody", name))
    for part in ("snapshots", "refs"):
        (repo / part).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).symlink_to(folder, target_is_directory=True)
    return f"somebody/{name}"


def test_a_cell_runs_by_hub_ids(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "huggingface"
    chat, perplexity, helpfulness = (
        snapshot(home, name, cache) for name in ("chat", "perplexity", "helpfulness")
    )
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = {
        "include": [str(CONFIGS / part) for part in ("cluster/cpu.yaml", "attack/ppo.yaml")],
        "data": {"num_samples": 32},
        "evaluation": {
            "num_prompts": 20,
            "num_looks": 0,
            "perplexity_model": perplexity,
            "helpfulness_model": helpfulness,
        },
        "cells": [{"model": chat, "defence": "refusal_loss"}],
    }
    output = run_campaign(config, "hub", cache=cache, folder=tmp_path)
    (record,) = json.loads((output / "summary.json").read_text())
    assert record["status"] == "ok"
    assert record["metrics"]["harm"]["mean"] >= 0
    manifest = (output / record["run"] / "manifest.json").read_text()
    assert f"somebody/chat@{COMMIT}" in manifest
