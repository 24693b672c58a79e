"""What an offline defence releases is a plain model: nothing of the defence has to come with it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hardening import attacked_model, make, save_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from rpa_ray.defences import OFFLINE_DEFENCES
from rpa_ray.jobs import model as model_job
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import SampledOfflineDefence

pytestmark = pytest.mark.timeout(600)

IDS = [[1, 5, 6, 7, 8], [1, 9, 10, 11, 12]]
ON_ROWS = [n for n, kind in OFFLINE_DEFENCES.items() if not issubclass(kind, SampledOfflineDefence)]
"""What learns from answers of an engine is saved by the same lines."""
FORMS: dict[str, dict[str, Any]] = {name: {"name": name} for name in ON_ROWS} | {
    "circuit_breakers_original": {
        "name": "circuit_breakers",
        "variant": "original",
        "lora": {"rank": 4, "alpha": 4},
    },
    "rmu_original": {"name": "rmu", "variant": "original"},
}
FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids, found = json.loads(sys.argv[1]), {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits
    names = [name for name, _ in model.named_modules()]
    found[folder] = {"logits": logits, "names": names, "num_hooked": len(hooks)}
assert "rpa_ray" not in sys.modules
torch.save(found, sys.argv[2])
"""
"""Loads every folder in a process without this package, and says what it finds."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, world_cache: Path) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start"), world_cache)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, start: Path, world_cache: Path, process_group: None
) -> dict[str, tuple[Path, Tensor]]:
    """Return the folder of every form, and the logits of what was trained before it was saved."""
    seen: list[Tensor] = []
    save = model_job._save

    def watched(recipe: Any, engine: Any, *rest: Any, **others: Any) -> None:
        ids = torch.tensor(IDS)
        with torch.no_grad():
            seen.append(engine(ids, torch.ones_like(ids, dtype=torch.bool))[0].clone())
        save(recipe, engine, *rest, **others)

    found = {}
    for form, settings in FORMS.items():
        tree = {
            "attack": "sft",
            "defence": settings | {"num_steps": 2, "learning_rate": 1e-2},
            "model": {"path": str(start), "dtype": "float32"},
        }
        experiment = parse_tree(tree)
        recipe = attacked_model(experiment, world_cache)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_job, "_save", watched)
            cache = tmp_path_factory.mktemp(form) / "cache"
            folder = make(recipe, experiment, cache, world_cache=world_cache)
        found[form] = (folder, seen[-1])
    return found


@pytest.fixture(scope="module")
def released(
    trained: dict[str, tuple[Path, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return what a process that knows nothing of defences finds in every folder."""
    folders = [str(folder) for folder, _ in trained.values()]
    file = tmp_path_factory.mktemp("found") / "found.pt"
    command = [sys.executable, "-P", "-c", FRESH, json.dumps(IDS), str(file), *folders]
    subprocess.run(command, check=True, cwd=file.parent)
    found: dict[str, Any] = torch.load(file)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_hardened_model_is_a_plain_one_with_the_weights_that_were_trained(
    form: str, trained: dict[str, tuple[Path, Tensor]], released: dict[str, Any], start: Path
) -> None:
    folder, logits = trained[form]
    found = released[str(folder)]
    # adapters stand beside the weights while they are trained, and in them afterwards
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)
    before = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    assert found["names"] == [name for name, _ in before.named_modules()]
    assert found["num_hooked"] == 0
    with torch.no_grad():
        assert not torch.allclose(found["logits"], before(torch.tensor(IDS)).logits, atol=1e-3)
