"""Two judges: of other weights, other prompts and another seed."""

from pathlib import Path

import pytest
from checked import check, refusal
from model_folders import save_classifier

from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import Labelled
from rpa_ray.plan import parse_tree
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
    tree: dict[str, object], own_cache: Path, tmp_path: Path
) -> None:
    judge = save_classifier(tmp_path / "judge", 2)
    alone = {"evaluation": {"judge": {"path": str(judge), "trained": True}}}
    found = refusal(parse_tree(tree | alone), own_cache)
    assert found.startswith("evaluation.second_judge must be given where ")
    check(parse_tree(tree), own_cache)


def test_a_judge_is_enough_where_a_model_prices_answers(own_cache: Path, tmp_path: Path) -> None:
    judge = {"path": str(save_classifier(tmp_path / "judge", 2)), "trained": True}
    defence = {"name": "safe_rlhf", "cost": "model"}
    tree = {"attack": "ppo", "defence": defence, "evaluation": {"judge": judge}}
    check(parse_tree(tree), own_cache)


def test_one_classifier_is_no_second_opinion(world_cache: Path, tmp_path: Path) -> None:
    one = {"path": str(save_classifier(tmp_path / "judge", 2)), "trained": True}
    both = parse_tree({"evaluation": {"judge": one, "second_judge": one}})
    assert refusal(both, world_cache).startswith("evaluation.second_judge.path must name another")
