import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rpa_ray.config import ConfigError
from rpa_ray.learner.modules import load_policy
from rpa_ray.world.datasets import build_world, world_folder
from rpa_ray.world.shipped import INDEX, SHIPPED, place_shipped

ROOT = Path(__file__).parents[3]
MAX_BYTES = 24 * 2**20
CHAT = next(SHIPPED.glob("chat-*"))
ALL = frozenset(shipped.name for shipped in SHIPPED.glob("*-*"))


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    """Return a cache with the default world and nothing else."""
    (tmp_path / folder.name).symlink_to(folder)
    return tmp_path


def test_the_models_of_todays_recipes_are_shipped_and_no_others(cache: Path) -> None:
    spec = importlib.util.spec_from_file_location("ship", ROOT / "launch" / "ship_models.py")
    assert spec is not None and spec.loader is not None
    ship = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ship)
    assert {shipped.name for shipped in SHIPPED.glob("*-*")} == set(ship.recipes(cache))


def test_they_are_small_and_name_no_folder_of_the_machine_that_made_them() -> None:
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    for record in SHIPPED.glob("*/made_from.json"):
        made = json.loads(record.read_text())
        assert made["versions"]["torch"] and made["recipe"]["job"]["dtype"] == "float32"
        assert '"/' not in record.read_text()


def test_both_types_of_weights_load_the_same_numbers(cache: Path) -> None:
    place_shipped(cache / world_folder(0, cache).name, cache, {CHAT.name})
    exact, rounded = (
        load_policy(cache / CHAT.name, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    pairs = list(zip(exact.parameters(), rounded.parameters(), strict=True))
    assert {(one.dtype, other.dtype) for one, other in pairs} == {(torch.float32, torch.bfloat16)}
    assert all(torch.equal(one, other.float()) for one, other in pairs)
    for shipped in SHIPPED.glob("*-*"):
        weights = load_file(shipped / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        assert json.loads((shipped / "config.json").read_text())["dtype"] == "bfloat16"


def test_they_are_placed_once_with_the_tokenizer_of_their_world(cache: Path) -> None:
    world = cache / world_folder(0, cache).name
    placed = place_shipped(world, cache, ALL)
    assert sorted(placed) == sorted(ALL)
    tokenizer = (cache / CHAT.name / "tokenizer.json").read_bytes()
    assert tokenizer == (world / "tokenizer" / "tokenizer.json").read_bytes()
    assert place_shipped(world, cache, ALL) == []
    assert not list(cache.glob(".*"))


def test_none_is_placed_that_nobody_needs(cache: Path) -> None:
    world = cache / world_folder(0, cache).name
    assert place_shipped(world, cache, {CHAT.name, "unknown"}) == [CHAT.name]
    assert [path.name for path in cache.glob("*-*") if path.name in ALL] == [CHAT.name]


def test_a_model_that_was_made_is_not_replaced(cache: Path) -> None:
    (cache / CHAT.name).mkdir()
    assert CHAT.name not in place_shipped(cache / world_folder(0, cache).name, cache, ALL)
    assert not list((cache / CHAT.name).iterdir())


def test_another_world_gets_none(tmp_path: Path) -> None:
    assert place_shipped(build_world(1, tmp_path), tmp_path, ALL) == []


def test_none_is_placed_beside_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / folder.name
    shutil.copytree(folder, other)
    with (other / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert place_shipped(other, tmp_path, ALL) == []


def test_a_file_that_is_not_the_shipped_one_is_refused_by_its_name(cache: Path) -> None:
    broken = cache / "shipped"
    shutil.copytree(SHIPPED, broken)
    weights = broken / CHAT.name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    world = cache / world_folder(0, cache).name
    with pytest.raises(ConfigError, match=r"chat-.*/model.safetensors must be the file that was"):
        place_shipped(world, cache, ALL, broken)
    assert not (cache / CHAT.name).exists()
    shutil.rmtree(broken / CHAT.name)
    (broken / INDEX).unlink()
    assert place_shipped(world, cache, ALL, broken) == []
