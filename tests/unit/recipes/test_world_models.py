from dataclasses import replace
from pathlib import Path

from rpa_ray.config import EMBEDDED_MODELS, DataSettings
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.embedded import world_models
from rpa_ray.recipes.model import ModelRecipe


def test_models_that_were_made_before_are_found_again(tmp_path: Path) -> None:
    # Names of folders in caches that exist: a change here has everything made anew.
    world = world_models(0, tmp_path)
    names = [m.key() for m in (world.base, world.chat, world.perplexity, world.helpfulness)]
    assert names == ["6e29e45a2177", "3677c519e145", "eaff4df286d2", "b78766de3e29"]


def test_the_other_chat_model_differs_in_its_seeds_alone(tmp_path: Path) -> None:
    world = world_models(3, tmp_path)
    other = world.other_chat
    assert isinstance(other.start, ModelRecipe)
    alike = replace(other.start, id="base", seed=3)
    assert alike == world.base
    assert replace(other, id="chat", seed=3, start=alike) == world.chat
    assert len({3, other.seed, world_models(4, tmp_path).chat.seed}) == 3
    assert other.start.seed == other.seed


def test_every_embedded_model_that_can_be_named_is_made_by_us(tmp_path: Path) -> None:
    made = [CellData(DataSettings(), tmp_path).language_model(name) for name in EMBEDDED_MODELS]
    assert [model.id for model in made if isinstance(model, ModelRecipe)] == list(EMBEDDED_MODELS)
    assert CellData(DataSettings(), tmp_path).language_model("owner/name") == "owner/name"


def test_the_qwen2_models_differ_in_their_architecture_alone(tmp_path: Path) -> None:
    world = world_models(0, tmp_path)
    qwen2 = world.qwen2_chat
    assert isinstance(qwen2.start, ModelRecipe)
    assert (world.chat.model_type, qwen2.model_type) == ("llama", "qwen2")
    sizes = {key: size for key, size in qwen2.start.architecture.items() if key != "model_type"}
    alike = replace(qwen2.start, id="base", architecture=sizes)
    assert alike == world.base
    assert replace(qwen2, id="chat", start=alike) == world.chat
