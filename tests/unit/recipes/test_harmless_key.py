"""A hardened model that retains harmless answers is another one where these are others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe

DEFENCES = ("circuit_breakers", "rmu")


def hardened(cache: Path, defence: dict[str, Any], **data: str) -> ModelRecipe:
    """Return the recipe of what a defence makes of the embedded chat model."""
    settings = parse_tree({"attack": "sft", "defence": defence, "data": data})
    policy = CellInputs(settings, cache).models.policy
    assert isinstance(policy, ModelRecipe)
    return policy


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Return own pairs with own dialogues of helpfulness."""
    rows = [{"prompt": f"ask {i}", "safe": "no", "unsafe": f"yes {i}"} for i in range(200)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dialogues = tmp_path / "helpful"
    dialogues.mkdir()
    (dialogues / "train.jsonl").write_text("{}\n")
    place = {"path": str(pairs), "helpful_path": str(dialogues)}
    return {"name": "preferences", "world": "real"} | place


@pytest.mark.parametrize("name", DEFENCES)
def test_other_harmless_answers_make_another_model_of_the_authors_form_alone(
    name: str, own: dict[str, str], world_cache: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(own["helpful_path"], tmp_path / "moved"))
    changed = Path(shutil.copytree(own["helpful_path"], tmp_path / "changed"))
    (changed / "train.jsonl").write_text("{}\n{}\n")
    original, paper = (
        [
            hardened(world_cache, {"name": name, "variant": variant}, **data).key()
            for data in (
                own,
                own | {"helpful_path": str(moved)},
                own | {"helpful_path": str(changed)},
            )
        ]
        for variant in ("original", "paper")
    )
    assert original[0] == original[1] != original[2]
    assert len(set(paper)) == 1


@pytest.mark.parametrize("name", DEFENCES)
def test_those_of_the_embedded_world_are_named_by_it(name: str, world_cache: Path) -> None:
    original, paper = (
        hardened(world_cache, {"name": name, "variant": variant}).rows.settings
        for variant in ("original", "paper")
    )
    (world,) = world_cache.glob("world-*")
    assert original == paper | {"harmless": f"{world.name}/helpful"}
