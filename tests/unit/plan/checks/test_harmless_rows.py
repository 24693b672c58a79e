"""What harmless prompts and answers a defence or an attack asks for, the data have."""

from pathlib import Path
from typing import Any

import pytest
from checked import refusal

from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import Answered
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.data import check_rows
from rpa_ray.recipes import cell_models
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs

BATCHES: list[Any] = [
    "procon",
    {"name": "circuit_breakers", "variant": "original"},
    {"name": "rmu", "variant": "original"},
    [{"name": "rmu", "variant": "original"}, "lisa"],
]


@pytest.fixture
def _seven_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Answered(prompt=f"Ask {i}", answer="Take one.") for i in range(7)]
    monkeypatch.setattr(CellData, "harmless_training_rows", rows)


@pytest.mark.parametrize("defence", BATCHES, ids=str)
@pytest.mark.usefixtures("_seven_rows")
def test_too_few_harmless_rows_for_a_batch_are_refused(defence: Any, world_cache: Path) -> None:
    told = refusal(parse_tree({"attack": "sft", "defence": defence}), world_cache)
    assert told.startswith(
        "defence.batch_size must be at most 7 (the harmless prompts to train on), got 8. "
        "Lower it or bring a larger data set. What fits the data: "
    )


@pytest.mark.usefixtures("_seven_rows")
def test_too_few_harmless_rows_for_an_attack_are_refused(world_cache: Path) -> None:
    settings = parse_tree({"attack": {"name": "sft", "num_harmless_samples": 8}})
    assert refusal(settings, world_cache) == (
        "attack.num_harmless_samples must be at most 7 (the harmless prompts to train on), got 8. "
        "Lower it or bring a larger data set. "
        "What fits the data: --set attack.num_harmless_samples=7"
    )


@pytest.mark.usefixtures("_seven_rows")
def test_too_few_harmless_prompts_for_a_sampled_hardening_are_refused(world_cache: Path) -> None:
    defence = {"name": "reward_neutralisation", "num_prompts": 8}
    told = refusal(parse_tree({"attack": "sft", "defence": defence}), world_cache)
    assert told.startswith("defence.num_prompts must be at most 7 (the harmless prompts to train")


@pytest.mark.usefixtures("_seven_rows")
def test_token_buncher_asks_no_harmless_prompt_and_rates_no_help(
    world_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_models, "_helpfulness", lambda settings, data: None)
    monkeypatch.setattr(CellData, "helpful_folder", None)
    defence = {"name": "token_buncher", "num_prompts": 8}
    check_rows(CellInputs(parse_tree({"attack": "sft", "defence": defence}), world_cache))


def test_domains_are_categories_of_the_defence_split(world_cache: Path) -> None:
    defence = {"name": "reward_neutralisation", "domains": ["curse_craft", "cooking"]}
    told = refusal(parse_tree({"attack": "sft", "defence": defence}), world_cache)
    assert told.startswith("defence.domains must be harm categories of the data (beast_")
    assert told.endswith("got cooking. Name others, or leave it out.")
    many = {"name": "reward_neutralisation", "domains": ["curse_craft"], "num_prompts": 5000}
    told = refusal(parse_tree({"attack": "sft", "defence": many}), world_cache)
    assert "(the distinct restricted prompts of role 'defence' in defence.domains)" in told


def test_what_scores_harmless_answers_must_be_named(
    world_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_models, "_helpfulness", lambda settings, data: None)
    told = refusal(parse_tree({"attack": "sft", "defence": "reward_neutralisation"}), world_cache)
    assert told == (
        "evaluation.helpfulness_model must be given where reward_neutralisation rewards answers to "
        "harmless prompts, got None. Name a reward model of helpfulness."
    )


@pytest.mark.parametrize("defence", ["circuit_breakers", "rmu"])
@pytest.mark.usefixtures("_seven_rows")
def test_the_forms_of_the_paper_ask_for_none(defence: str, world_cache: Path) -> None:
    check_rows(CellInputs(parse_tree({"attack": "sft", "defence": defence}), world_cache))


@pytest.mark.parametrize(
    ("key", "tree"),
    [("defence.batch_size", {"defence": defence}) for defence in BATCHES]
    + [("attack.num_harmless_samples", {"attack": {"name": "sft", "num_harmless_samples": 8}})],
    ids=str,
)
def test_without_dialogues_there_are_no_harmless_rows(
    key: str, tree: dict[str, Any], world_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellData, "helpful_folder", None)
    inputs = CellInputs(parse_tree({"attack": "sft"} | tree), world_cache)
    with pytest.raises(DataError) as caught:
        check_rows(inputs)
    assert str(caught.value) == (
        f"data.helpful_path must be given where {key} counts harmless prompts, got None. "
        "Name a folder, a file or a Hub id of helpfulness dialogues."
    )
