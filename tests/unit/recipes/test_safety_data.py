"""Data to attack with beside data that safety is measured with: who reads which rows."""

import json
from pathlib import Path

import pytest
from checked import check

from rpa_ray.config import EvaluationSettings, ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import Answered, Labelled, Preference
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.settings import check_data_source
from rpa_ray.recipes.cell_data import CellData, with_pinned_data
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.rows import training_rows
from rpa_ray.recipes.to_make import refusal_job

NUM_MEASURED = 40
EVALUATED = EvaluationSettings(num_prompts=10)


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def beavertails(name: str, num: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"{name} {i}", "response": f"{answer} {i}", "is_safe": answer == "I cannot do"}
        for i in range(num)
        for answer in ("I cannot do", "sure, do")
    ]


@pytest.fixture
def settings(tmp_path: Path) -> ExperimentSettings:
    """Return a cell that is attacked with own pairs and measured with rows of another folder."""
    return settings_of(tmp_path)


def settings_of(folder: Path, **data: object) -> ExperimentSettings:
    own = [
        {"prompt": f"own {i}", "safe": f"own no {i}", "unsafe": f"own yes {i}"} for i in range(400)
    ]
    # What is measured is asked here too.
    own += [{"prompt": f"held {i}", "safe": "own no", "unsafe": "own yes"} for i in range(40)]
    write(folder / "own.jsonl", own)
    write(folder / "safety/train.jsonl", beavertails("told", 400))
    write(folder / "safety/test.jsonl", beavertails("held", NUM_MEASURED))
    given = {
        "name": "preferences",
        "world": "real",
        "path": str(folder / "own.jsonl"),
        "safety_path": str(folder / "safety"),
        "helpful_path": None,
        "num_samples": 64,
        "reward_model": {"num_pairs": 16},
    }
    return parse_tree(
        {
            "attack": {"name": "ppo"},
            "defence": {"name": "safe_rlhf", "cost": "model"},
            "data": given | data,
            "evaluation": {"judge": {"num_rows": 32, "hard_frac": 0.0}, "num_prompts": 10},
        }
    )


def test_the_attack_reads_its_own_rows_and_safety_is_measured_with_the_others(
    settings: ExperimentSettings, own_cache: Path
) -> None:
    check(settings, own_cache)
    inputs = CellInputs(settings, own_cache)
    data, models = inputs.data, inputs.models

    def read(model: object) -> set[str]:
        assert isinstance(model, ModelRecipe)
        found = set()
        for row in training_rows(model.rows, data):
            assert isinstance(row, Answered | Preference | Labelled)
            found.add(row.prompt.split()[0])
        return found

    assert {pair.prompt.split()[0] for pair in data.preferences.roles["attack"]} == {"own"}
    assert read(models.reward_model) == {"own"}
    assert read(models.cost_model) == {"told"}
    assert read(models.judge) == read(models.second_judge) == {"told"}
    assert {p.prompt.split()[0] for p in data.safety.preferences.roles["defence"]} == {"told"}
    assert {prompt.split()[0] for prompt in data.restricted_prompts(EVALUATED)} == {"held"}


def test_defences_refuse_as_the_safety_data_do(tmp_path: Path, world_cache: Path) -> None:
    settings = settings_of(tmp_path)
    tree = settings.model_dump(exclude={"defence", "attack"})
    tree |= {"attack": "dpo", "defence": "kl_safe_ref"}
    inputs = CellInputs(parse_tree(tree), world_cache)
    assert isinstance(inputs.models.reference, ModelRecipe)
    rows = training_rows(inputs.models.reference.rows, inputs.data)
    answers = {row.answer for row in rows if isinstance(row, Answered)}
    assert answers and all(answer.startswith("I cannot") for answer in answers)


def test_own_safety_data_are_attacked_with_and_others_measured(
    tmp_path: Path, world_cache: Path
) -> None:
    mine = beavertails("mine", 400) + beavertails("held", NUM_MEASURED)
    mine = [{"question" if name == "prompt" else name: of for name, of in r.items()} for r in mine]
    write(tmp_path / "mine.jsonl", mine)
    given = {
        "name": "beavertails",
        "path": str(tmp_path / "mine.jsonl"),
        "columns": {"prompt": "question"},
    }
    data = CellData(settings_of(tmp_path, **given).data, world_cache)
    told = {pair.prompt.split()[0] for pair in data.preferences.roles["attack"]}
    assert told == {"mine"}
    assert {prompt.split()[0] for prompt in data.restricted_prompts(EVALUATED)} == {"held"}
    assert data.safety.safety is data.safety


def test_refusals_are_generated_to_the_safety_data(tmp_path: Path, world_cache: Path) -> None:
    data = CellData(settings_of(tmp_path, safe_answers="generated").data, world_cache)
    job = refusal_job(data)
    assert job is not None
    assert job.data.path == str(tmp_path / "safety")
    assert data.planned.is_complete and not data.safety.planned.is_complete
    assert {pair.safe.split()[0] for pair in data.preferences.roles["attack"]} == {"own"}


def test_the_content_of_both_names_what_the_attack_trains_on(
    tmp_path: Path, world_cache: Path
) -> None:
    write(tmp_path / "other.jsonl", beavertails("other", 400))
    places = (None, str(tmp_path / "safety"), str(tmp_path / "other.jsonl"))
    keys = [
        CellData(settings_of(tmp_path, safety_path=place).data, world_cache).planned.key
        for place in places
    ]
    assert len(set(keys)) == 3


def test_a_broken_safety_file_is_named_by_its_key(tmp_path: Path, world_cache: Path) -> None:
    settings = settings_of(tmp_path)
    write(tmp_path / "safety/test.jsonl", [{"prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match=r"^data\.safety_path must have the columns "):
        CellData(settings.data, world_cache).restricted_prompts(EVALUATED)


def test_a_place_on_the_hub_is_pinned_for_both(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpa_ray.recipes.cell_data.pinned", lambda place, key: f"{key} of {place}")
    data = settings.data.model_copy(update={"safety_path": "owner/safety"})
    found = with_pinned_data(settings.model_copy(update={"data": data})).data
    assert found.safety_path == "data.safety_path of owner/safety"


@pytest.mark.parametrize(
    "data",
    [
        {"name": "tldr"},
        {"name": "tldr", "world": "real", "helpful_path": None},
        {"name": "safe_rlhf", "world": "real", "pairs": "all_pairs", "safety_path": "x"},
    ],
)
def test_refusals_may_be_generated_to_safety_data_whatever_is_attacked_with(
    data: dict[str, object], world_cache: Path
) -> None:
    settings = parse_tree({"attack": "sft", "data": data | {"safe_answers": "generated"}})
    check_data_source(settings)
    found = CellData(settings.data, world_cache)
    assert found.refusals is None
    if data.get("world") is None:
        assert found.safety.refusals is not None
