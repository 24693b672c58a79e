import json
from pathlib import Path

import pytest

from rpa_ray.config import ConfigError
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.models import check_same_tokens
from rpa_ray.recipes.cell_models import CellInputs


def model_folder(folder: Path, vocabulary: dict[str, int]) -> str:
    folder.mkdir()
    text = json.dumps({"model": {"vocab": vocabulary}})
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return str(folder)


def refusal(cache: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_same_tokens(CellInputs(parse_tree({"attack": "ppo"}, overrides), cache))
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("defence={{name: kl_safe_ref, model: {}}}", "defence.model"),
        ("defence={{name: kl_safe_ref, mode: add, model: {}}}", "defence.model"),
        ("defence={{name: random_anchor, model: {}}}", "defence.model"),
        ("attack.reference={}", "attack.reference"),
    ],
)
def test_a_model_of_another_language_is_refused(
    tmp_path: Path, world_cache: Path, override: str, key: str
) -> None:
    other = model_folder(tmp_path / "other", {"a": 0, "b": 1})
    assert refusal(world_cache, override.format(other)) == (
        f"{key} must be a model with the tokens of the one under attack (chat), got {other!r}. "
        "Name a model that was made from the same one."
    )


def test_an_embedded_model_beside_one_of_ones_own_is_refused(
    tmp_path: Path, world_cache: Path
) -> None:
    own = model_folder(tmp_path / "own", {"a": 0})
    found = refusal(world_cache, f"model.path={own}", "defence=random_anchor")
    assert f"the one under attack ({own}), got 'other_chat'." in found


@pytest.mark.parametrize(
    "overrides",
    [
        ["defence=random_anchor"],
        ["defence=kl_safe_ref", "attack.reference=base"],
        ["defence={name: kl_safe_ref, model: owner/not-here-yet}"],
        ["model.path=owner/not-here-yet", "defence=random_anchor"],
    ],
)
def test_models_with_the_same_tokens_or_not_here_yet_pass(
    world_cache: Path, overrides: list[str]
) -> None:
    check_same_tokens(CellInputs(parse_tree({"attack": "ppo"}, overrides), world_cache))


def test_the_order_of_the_vocabulary_counts_for_nothing(tmp_path: Path, world_cache: Path) -> None:
    own = model_folder(tmp_path / "own", {"a": 0, "b": 1})
    safe = model_folder(tmp_path / "safe", {"b": 1, "a": 0})
    overrides = [f"model.path={own}", f"defence={{name: kl_safe_ref, model: {safe}}}"]
    check_same_tokens(CellInputs(parse_tree({"attack": "ppo"}, overrides), world_cache))
