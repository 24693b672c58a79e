"""Two judges: of other weights, other prompts and another seed."""

from pathlib import Path

import pytest

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import Labelled
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.settings import check_settings
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.rows import training_rows

SMALL = {"evaluation": {"judge": {"num_rows": 400, "hard_frac": 0.5}}}


def judges_of(inputs: CellInputs) -> tuple[ModelRecipe, ModelRecipe]:
    found = inputs.models.judge, inputs.models.second_judge
    assert isinstance(found[0], ModelRecipe)
    assert isinstance(found[1], ModelRecipe)
    return found


def test_they_share_neither_trunk_nor_seed_nor_prompts(world_cache: Path) -> None:
    inputs = CellInputs(parse_tree(SMALL), world_cache)
    judge, second = judges_of(inputs)
    world = inputs.data.world
    assert (judge.start, second.start) == (world.other_base, world.base)
    assert judge.seed != second.seed
    rows = [training_rows(one.rows, inputs.data) for one in (judge, second)]
    prompts = [{row.prompt for row in found if isinstance(row, Labelled)} for found in rows]
    assert all(len(asked) > 100 for asked in prompts)
    assert not prompts[0] & prompts[1]


def test_no_judge_sees_a_prompt_that_is_evaluated(world_cache: Path) -> None:
    inputs = CellInputs(parse_tree(SMALL), world_cache)
    evaluated = set(inputs.data.restricted_prompts(inputs.settings.evaluation))
    for judge in judges_of(inputs):
        rows = training_rows(judge.rows, inputs.data)
        assert not evaluated & {row.prompt for row in rows if isinstance(row, Labelled)}


@pytest.mark.parametrize("name", ["judge", "second_judge"])
def test_too_few_answers_are_told_by_the_key_of_the_judge_that_lacks_them(
    name: str, world_cache: Path
) -> None:
    many = {"num_rows": 80_000, "hard_frac": 0.0}
    inputs = CellInputs(parse_tree({"evaluation": {name: many}}), world_cache)
    judge = inputs.models.judge if name == "judge" else inputs.models.second_judge
    assert isinstance(judge, ModelRecipe)
    with pytest.raises(DataError, match=rf"^evaluation\.{name}\.num_rows must be at most "):
        training_rows(judge.rows, inputs.data)


def test_settings_of_the_second_are_those_of_the_first_unless_it_has_its_own() -> None:
    same = parse_tree(SMALL).evaluation.judges
    assert same["judge"] == same["second_judge"]
    own = parse_tree({"evaluation": {"second_judge": {"num_rows": 300}}}).evaluation.judges
    assert (own["judge"].num_rows, own["second_judge"].num_rows) == (30_000, 300)
    finished = parse_tree({"evaluation": {"judge": {"path": "a/b", "trained": True}}}).evaluation
    assert list(finished.judges) == ["judge"]


@pytest.mark.parametrize(
    "tree",
    [
        {"attack": {"name": "ppo", "reward": "judge"}},
        {"attack": "ppo", "defence": "reward_shaping"},
        {"attack": "ppo", "defence": "safe_rlhf"},
    ],
)
def test_a_judge_that_is_optimised_against_is_not_the_one_that_is_reported(
    tree: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpa_ray.plan.checks.settings.check_models", lambda *_: None)
    alone = {"evaluation": {"judge": {"path": "a/b", "trained": True}}}
    with pytest.raises(ConfigError, match=r"^evaluation\.second_judge must be given where "):
        check_settings(parse_tree(tree | alone))
    check_settings(parse_tree(tree))
    paid_otherwise = {"attack": "ppo", "defence": {"name": "safe_rlhf", "cost": "model"}}
    check_settings(parse_tree(paid_otherwise | alone))


def test_one_classifier_is_no_second_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpa_ray.plan.checks.settings.check_models", lambda *_: None)
    one = {"path": "a/b", "trained": True}
    with pytest.raises(ConfigError, match=r"^evaluation\.second_judge\.path must name another"):
        check_settings(parse_tree({"evaluation": {"judge": one, "second_judge": one}}))
