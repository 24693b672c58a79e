"""Vaccine before the attack: its recipe, its place among defences, and what it does to weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import ONE_RANK, tiny_config
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from rpa_ray.config import ClusterSettings, ConfigError, ExperimentSettings
from rpa_ray.defences import defence_of, offline_defences
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.jobs.model import make_model
from rpa_ray.jobs.process import Workplace
from rpa_ray.learner.modules import load_policy
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import OnlineDefence
from rpa_ray.recipes.cell_models import cell_models
from rpa_ray.recipes.model import ModelKind, ModelRecipe, RowKind
from rpa_ray.recipes.to_make import ModelJob, models_to_make
from rpa_ray.world.datasets import world_folder

NUM_STEPS = 6


class Silent:
    """Hears of progress and says nothing."""

    def start(self, job: str, num_steps: int) -> None: ...

    def advance(self, job: str, step: int, note: str) -> None: ...


def settings_of(defence: Any = "vaccine_offline", **others: Any) -> ExperimentSettings:
    return parse_tree({"attack": "sft", "defence": defence, **others})


def hardened(settings: ExperimentSettings, cache: Path) -> ModelRecipe:
    policy = cell_models(settings, cache).policy
    assert isinstance(policy, ModelRecipe)
    return policy


def test_what_is_attacked_is_the_model_that_was_trained_on_refusals(world_cache: Path) -> None:
    recipe = hardened(settings_of(), world_cache)
    assert (recipe.id, recipe.kind) == ("vaccine_offline", ModelKind.CAUSAL)
    assert recipe.start == cell_models(settings_of("none"), world_cache).policy
    assert recipe.rows.kind is RowKind.REFUSALS
    assert (recipe.job.num_steps, recipe.job.batch_size, recipe.job.learning_rate) == (100, 8, 1e-4)
    made = [model.id for model in models_to_make(settings_of(), world_cache)]
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
    changed = hardened(settings_of({"name": "vaccine_offline"} | other), world_cache)
    assert changed.key() != hardened(settings_of(), world_cache).key()


def test_the_attack_is_that_of_a_model_without_a_defence() -> None:
    assert type(defence_of(settings_of().defence)) is OnlineDefence


def test_before_an_online_defence_it_hardens_and_leaves_the_attack_to_that(
    world_cache: Path,
) -> None:
    both = settings_of(["vaccine_offline", "lisa"])
    assert both.defence.name == "vaccine_offline+lisa"
    assert isinstance(defence_of(both.defence), Lisa)
    assert hardened(both, world_cache).key() == hardened(settings_of(), world_cache).key()


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
    """Return the folder of a tiny language model that reads the world's language."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = AutoTokenizer.from_pretrained(world_folder(0, world_cache) / "tokenizer")
    torch.manual_seed(0)
    config = tiny_config(tie_word_embeddings=True)
    config.update({"vocab_size": len(tokenizer), "max_position_embeddings": 128})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights_after(
    policy: Path, world_cache: Path, cache: Path, *, rho: float | None, zero_stage: int = 1
) -> dict[str, Tensor]:
    """Return the weights of the model that is made; None is SFT on the same rows."""
    config = {"name": "vaccine_offline", "num_steps": NUM_STEPS, "learning_rate": 1e-2}
    if rho is not None:
        config["rho"] = rho
    settings = settings_of(config, model={"path": str(policy), "dtype": "bfloat16"})
    recipe = hardened(settings, world_cache)
    if rho is None:
        recipe = replace(recipe, defence=None)
    cache.mkdir()
    (cache / world_folder(0, cache).name).symlink_to(world_folder(0, world_cache))
    nobody: Any = None
    place = Workplace(
        ranks=ONE_RANK,
        rollouts=nobody,
        scorers=nobody,
        cache=cache,
        cluster=ClusterSettings(zero_stage=zero_stage),  # type: ignore[arg-type]
        progress=Silent(),
    )
    folder = make_model(ModelJob(recipe=recipe, data=settings.data), place)
    assert recipe.is_made(cache)
    return dict(load_policy(folder, dtype=torch.bfloat16).named_parameters())


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_strength_0_is_sft_on_refusals_and_a_perturbation_is_not(
    zero_stage: int, policy: Path, world_cache: Path, tmp_path: Path
) -> None:
    sft, zero, two = (
        weights_after(policy, world_cache, tmp_path / name, rho=rho, zero_stage=zero_stage)
        for name, rho in (("sft", None), ("zero", 0.0), ("two", 2.0))
    )
    assert not differ(sft, zero)
    assert differ(sft, two)
