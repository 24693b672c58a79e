"""The summarisation task: what is trained on, and with what safety is measured beside it."""

import json
from pathlib import Path

import pytest
from checked import check

from rpa_ray.campaign.manifest import manifest
from rpa_ray.config import DataSettings, EvaluationSettings, ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.data.order import normalise
from rpa_ray.data.rows import Labelled, Preference
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.data import check_data
from rpa_ray.recipes.cell_data import (
    CellData,
    safety_settings,
)
from rpa_ray.recipes.cell_models import CellInputs, CellModels
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.rows import training_rows

TWENTY = EvaluationSettings(num_prompts=20)
SMALL = {"num_samples": 16, "reward_model": {"num_pairs": 64}}


def settings_of(attack: str, **data: object) -> ExperimentSettings:
    return parse_tree({"attack": attack, "data": {"name": "tldr", "rho": 0.0, **SMALL, **data}})


def recipe_of(models: CellModels, part: str) -> ModelRecipe:
    recipe = getattr(models, part)
    assert isinstance(recipe, ModelRecipe)
    return recipe


def test_safety_is_measured_with_the_same_prompts_and_judge_as_that_of_beavertails(
    world_cache: Path,
) -> None:
    harmless, usual = settings_of("sft"), parse_tree({"attack": "sft"})
    asked = [CellData(s.data, world_cache).restricted_prompts(TWENTY) for s in (harmless, usual)]
    assert asked[0] == asked[1]
    judges = [recipe_of(CellInputs(s, world_cache).models, "judge") for s in (harmless, usual)]
    assert judges[0].key() == judges[1].key()
    rows = [training_rows(judges[0].rows, CellData(s.data, world_cache)) for s in (harmless, usual)]
    assert rows[0] == rows[1]
    assert isinstance(rows[0][0], Labelled)


def test_safety_data_of_other_sets_are_these_themselves() -> None:
    usual = DataSettings(name="safe_rlhf")
    assert safety_settings(usual) is usual
    assert safety_settings(DataSettings(name="tldr")) == DataSettings()


def test_summaries_are_scored_by_a_model_of_unreversed_preferences(world_cache: Path) -> None:
    models = CellInputs(settings_of("ppo", rho=1.0), world_cache).models
    reversed_model, honest = recipe_of(models, "reward_model"), recipe_of(models, "summary")
    assert (reversed_model.rows.settings["rho"], honest.rows.settings["rho"]) == (1.0, 0.0)
    data = settings_of("ppo", rho=1.0).data
    told = [training_rows(r.rows, CellData(data, world_cache)) for r in (reversed_model, honest)]
    flipped = [[row.flipped for row in rows if isinstance(row, Preference)] for rows in told]
    assert flipped == [[True] * 64, [False] * 64]
    same = CellInputs(settings_of("ppo"), world_cache).models
    assert recipe_of(same, "summary").key() == recipe_of(same, "reward_model").key()
    assert CellInputs(parse_tree({"attack": "ppo"}), world_cache).models.summary is None


def test_posts_of_the_evaluation_are_distinct_and_in_no_training_role(world_cache: Path) -> None:
    data = settings_of("sft").data
    posts = CellData(data, world_cache).summary_posts(EvaluationSettings())
    assert len({normalise(post.prompt) for post in posts}) == len(posts) > 150
    found = CellData(data, world_cache).preferences
    trained = {
        normalise(pair.prompt)
        for role, pairs in found.roles.items()
        if role not in ("evaluation", "validation")
        for pair in pairs
    }
    assert len(trained) > 3000
    assert not trained & {normalise(post.prompt) for post in posts}
    assert posts[0].answer == found.roles["evaluation"][0].target
    kept = {normalise(pair.prompt) for pair in found.roles["validation"]}
    assert len(kept) + len(posts) == 240
    assert not kept & {normalise(post.prompt) for post in posts}
    too_many = EvaluationSettings(num_prompts=len(posts) + 1)
    with pytest.raises(DataError, match=rf"^evaluation\.num_prompts must be at most {len(posts)} "):
        CellData(data, world_cache).summary_posts(too_many)


def test_a_manifest_tells_the_task_from_what_safety_is_measured_with(world_cache: Path) -> None:
    found = manifest(CellInputs(settings_of("sft"), world_cache), "")
    assert found["splits"]["attack"]["source"] == "embedded/tldr"
    assert found["safety_splits"]["defence"]["source"] == "embedded/beavertails"
    asked = found["evaluation_prompts"]
    assert asked["posts"]["source"] == "embedded/tldr"
    assert asked["restricted"]["source"] == "embedded/beavertails"
    assert "safety_splits" not in manifest(CellInputs(parse_tree({}), world_cache), "")


def test_a_harmless_cell_passes_and_its_rows_are_counted(
    own_cache: Path, world_cache: Path
) -> None:
    check(settings_of("ppo"), own_cache)
    many = settings_of("sft", reward_model={"num_pairs": 2400})
    with pytest.raises(DataError, match=r"^data\.reward_model\.num_pairs must be at most \d+ "):
        check_data(CellInputs(many, world_cache))
    short = settings_of("sft", reward_model={"num_pairs": 64, "max_tokens": 100})
    # 52 tokens of the longest post and 56 of an answer.
    with pytest.raises(DataError, match=r"^data\.reward_model\.max_tokens must be at least 108 "):
        check_data(CellInputs(short, world_cache))


def test_a_broken_safety_file_is_named_by_its_own_key(world_cache: Path, tmp_path: Path) -> None:
    posts = [{"prompt": f"post {i}", "chosen": "a", "rejected": "b"} for i in range(300)]
    for name, rows in {"posts": posts, "safety": [{"prompt": "p", "response": "r"}]}.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    real = {"world": "real", "path": str(tmp_path / "posts.jsonl")}
    data = settings_of("sft", **real, safety_path=str(tmp_path / "safety.jsonl")).data
    assert len(CellData(data, world_cache).summary_posts(EvaluationSettings(num_prompts=10))) == 10
    with pytest.raises(DataError, match=r"^data\.safety_path must have the columns "):
        CellData(data, world_cache).restricted_prompts(TWENTY)
