"""The adapter of Security Vectors as a model that is made: its recipe, rows, training, folder."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import forward_of, loss_of
from hardening import make, save_tiny_model
from tiny_vectors import folders_of
from transformers import AutoTokenizer

from rpa_ray.config import ExperimentSettings
from rpa_ray.data.order import normalise
from rpa_ray.defences.online.security_vectors import SecurityVectors
from rpa_ray.jobs.model import encode_rows
from rpa_ray.learner.modules import load_policy
from rpa_ray.plan import parse_tree
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import JobSettings, ModelKind, ModelRecipe, RowKind
from rpa_ray.recipes.rows import training_rows
from rpa_ray.recipes.to_make import models_to_make


def settings_of(defence: Any, **others: Any) -> ExperimentSettings:
    return parse_tree({"attack": "sft", "defence": defence, **others})


def vector_of(settings: ExperimentSettings, cache: Path) -> ModelRecipe:
    vector = CellInputs(settings, cache).models.security_vector
    assert vector is not None
    return vector


def test_the_vector_is_an_adapter_of_the_policy_with_the_sizes_of_the_paper(
    world_cache: Path,
) -> None:
    settings = settings_of("security_vectors")
    vector = vector_of(settings, world_cache)
    assert vector.kind is ModelKind.ADAPTER
    assert vector.start == CellInputs(settings, world_cache).models.policy
    assert vector.rows.kind is RowKind.UNSAFE_ANSWERS
    assert vector.architecture == {"rank": 16, "alpha": 32}
    assert (vector.job.num_steps, vector.job.batch_size, vector.job.learning_rate) == (877, 8, 1e-4)
    made = [recipe.id for recipe in models_to_make(CellInputs(settings, world_cache))]
    assert made.index("base") < made.index("chat") < made.index("security_vector")


@pytest.mark.parametrize(
    "other",
    [
        {"rank": 8},
        {"alpha": 8},
        {"learning_rate": 1e-3},
        {"num_steps": 10},
        {"batch_size": 4},
        {"max_tokens": 64},
    ],
)
def test_what_the_vector_is_trained_with_names_its_folder(
    other: dict[str, Any], world_cache: Path
) -> None:
    changed = vector_of(settings_of({"name": "security_vectors", **other}), world_cache)
    assert changed.key() != vector_of(settings_of("security_vectors"), world_cache).key()


def test_how_the_vector_is_used_does_not(world_cache: Path) -> None:
    use = {"scale": 0.5, "rollout_adapter": False, "ref_adapter": True}
    used = vector_of(settings_of({"name": "security_vectors", **use}), world_cache)
    beside = vector_of(settings_of(["refusal_loss", "security_vectors"]), world_cache)
    expected = vector_of(settings_of("security_vectors"), world_cache)
    assert used.key() == beside.key() == expected.key()


@pytest.mark.parametrize("defence", ["none", {"name": "security_vectors", "scale": 0.0}])
def test_no_vector_is_made_where_none_is_used(defence: Any, world_cache: Path) -> None:
    assert CellInputs(settings_of(defence), world_cache).models.security_vector is None


def test_on_and_off_are_read_as_they_are_written() -> None:
    text = ["defence={name: security_vectors, rollout_adapter: off, ref_adapter: on}"]
    config = parse_tree({"attack": "sft"}, text).defence
    assert isinstance(config, SecurityVectors.Config)
    assert (config.rollout_adapter, config.ref_adapter) == (False, True)


def test_it_learns_the_unsafe_answers_of_prompts_that_nobody_else_uses(world_cache: Path) -> None:
    settings = settings_of("security_vectors")
    vector = vector_of(settings, world_cache)
    rows: Any = training_rows(vector.rows, CellData(settings.data, world_cache))
    roles = CellData(settings.data, world_cache).planned.roles
    unsafe = {(pair.prompt, pair.unsafe) for pair in roles["defence"]}
    assert {(row.prompt, row.answer) for row in rows} == unsafe
    asked = {normalise(row.prompt) for row in rows}
    for role in roles.keys() - {"defence"}:
        assert not asked & {normalise(pair.prompt) for pair in roles[role]}


@pytest.fixture
def policy(world_cache: Path, tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "policy", world_cache)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_vector_that_is_made_gives_the_unsafe_answers(
    zero_stage: int, policy: Path, world_cache: Path, tmp_path: Path
) -> None:
    settings = settings_of("security_vectors", model={"path": str(policy)})
    like = vector_of(settings, world_cache)
    job = JobSettings(num_steps=12, batch_size=8, learning_rate=3e-2, dtype="bfloat16")
    recipe = replace(like, job=job, seed=zero_stage)
    cache = tmp_path / "cache"
    folder = make(recipe, settings, cache, world_cache=world_cache, zero_stage=zero_stage)
    record = json.loads((folder / "made_from.json").read_text())
    assert record["last_loss"] < record["first_loss"] - 0.5
    module = load_policy(policy, dtype=torch.bfloat16)
    defence = SecurityVectors(SecurityVectors.Config())
    defence.attach(module, folders_of(folder))
    rows = training_rows(recipe.rows, CellData(settings.data, cache))[:32]
    encoded, collate = encode_rows(rows, AutoTokenizer.from_pretrained(policy), 128)
    losses = []
    for around in (nullcontext(), defence.around_forward()):
        with around, torch.no_grad():
            loss = loss_of(LanguageModel(), forward_of(module), collate(encoded)).loss
            losses.append(float(loss))
    assert losses[0] == pytest.approx(record["first_loss"], abs=0.3)
    assert losses[1] == pytest.approx(record["last_loss"], abs=0.3)
