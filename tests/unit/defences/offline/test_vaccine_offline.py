"""Vaccine before the attack: its recipe, its place among defences, and what it does to weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hardening import are_equal, attacked_model, make, save_tiny_model, weights
from torch import Tensor

from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.defences import defence_of, offline_defences
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import OnlineDefence
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelKind, RowKind
from rpa_ray.recipes.to_make import models_to_make

NUM_STEPS = 6


def settings_of(defence: Any = "vaccine_offline", **others: Any) -> ExperimentSettings:
    return parse_tree({"attack": "sft", "defence": defence, **others})


def test_what_is_attacked_is_the_model_that_was_trained_on_refusals(world_cache: Path) -> None:
    recipe = attacked_model(settings_of(), world_cache)
    assert (recipe.id, recipe.kind) == ("vaccine_offline", ModelKind.CAUSAL)
    assert recipe.start == CellInputs(settings_of("none"), world_cache).models.policy
    assert recipe.rows.kind is RowKind.REFUSALS
    assert (recipe.job.num_steps, recipe.job.batch_size, recipe.job.learning_rate) == (100, 8, 1e-4)
    made = [model.id for model in models_to_make(CellInputs(settings_of(), world_cache))]
    assert made.index("chat") < made.index("vaccine_offline")


@pytest.mark.parametrize(
    "other",
    [
        {"rho": 1.0},
        {"learning_rate": 1e-3},
        {"num_steps": 9},
        {"batch_size": 4},
        {"max_tokens": 64},
    ],
)
def test_every_setting_is_in_the_key(other: dict[str, Any], world_cache: Path) -> None:
    changed = attacked_model(settings_of({"name": "vaccine_offline"} | other), world_cache)
    assert changed.key() != attacked_model(settings_of(), world_cache).key()


def test_the_attack_is_that_of_a_model_without_a_defence() -> None:
    assert type(defence_of(settings_of().defence)) is OnlineDefence


def test_before_an_online_defence_it_hardens_and_leaves_the_attack_to_that(
    world_cache: Path,
) -> None:
    both = settings_of(["vaccine_offline", "lisa"])
    assert both.defence.name == "vaccine_offline+lisa"
    assert isinstance(defence_of(both.defence), Lisa)
    assert (
        attacked_model(both, world_cache).key() == attacked_model(settings_of(), world_cache).key()
    )


def test_a_model_can_be_hardened_and_measured_without_an_attack() -> None:
    settings = parse_tree({"attack": "none", "defence": "vaccine_offline"})
    assert [part.config.name for part in offline_defences(settings.defence)] == ["vaccine_offline"]


@pytest.mark.parametrize(
    ("defence", "reason"),
    [
        (["vaccine_offline", "vaccine_offline"], "vaccine_offline is there twice"),
        (["none", "vaccine_offline"], "none stands alone"),
    ],
)
def test_what_contradicts_itself_is_refused(defence: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings_of(defence)


def test_an_online_part_still_needs_an_attack() -> None:
    with pytest.raises(ConfigError, match="be none where attack is none"):
        parse_tree({"attack": "none", "defence": ["vaccine_offline", "lisa"]})


@pytest.fixture(scope="module")
def policy(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("policy"), world_cache)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_strength_0_is_sft_on_refusals_and_a_perturbation_is_not(
    zero_stage: int, policy: Path, world_cache: Path, tmp_path: Path
) -> None:
    def made(name: str, rho: float, *, sft: bool = False) -> dict[str, Tensor]:
        quick = {"num_steps": 6, "learning_rate": 1e-2, "rho": rho}
        settings = settings_of(
            {"name": "vaccine_offline", **quick},
            model={"path": str(policy), "dtype": "bfloat16"},
        )
        recipe = attacked_model(settings, world_cache)
        if sft:
            recipe = replace(recipe, defence=None)
        folder = make(
            recipe, settings, tmp_path / name, world_cache=world_cache, zero_stage=zero_stage
        )
        return weights(folder)

    sft = made("sft", 0.0, sft=True)
    assert are_equal(sft, made("zero", 0.0))
    assert not are_equal(sft, made("two", 2.0))
