"""``data.domains``: the harm categories that are attacked and measured."""

from pathlib import Path
from typing import Any

import pytest

from rpa_ray.config import EvaluationSettings
from rpa_ray.data.errors import DataError
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.data import check_rows
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.world.words import RESTRICTED_NOUNS

DOMAINS = ["dream_theft", "storm_calling"]
NOUNS = [noun for domain in DOMAINS for noun in RESTRICTED_NOUNS[domain]]


def inputs_of(cache: Path, **data: Any) -> CellInputs:
    return CellInputs(parse_tree({"attack": "ppo", "data": data}), cache)


def is_of_domains(prompt: str) -> bool:
    return any(noun in prompt for noun in NOUNS)


def test_attack_and_measured_prompts_are_of_the_domains(world_cache: Path) -> None:
    inputs = inputs_of(world_cache, domains=DOMAINS)
    drawn = inputs.data.preferences.draw("attack", 50, seed=0, key="", domains=DOMAINS)
    assert all(is_of_domains(pair.prompt) for pair in drawn)
    every = inputs_of(world_cache).data
    assert not all(
        is_of_domains(pair.prompt) for pair in every.preferences.draw("attack", 50, seed=0, key="")
    )
    evaluation = EvaluationSettings()
    asked = every.restricted_prompts(evaluation)
    measured = [prompt for prompt in asked if is_of_domains(prompt)]
    assert inputs.data.restricted_prompts(evaluation) == measured
    assert 50 < len(measured) < len(asked)


def test_models_are_made_from_all_domains(world_cache: Path) -> None:
    narrow, whole = inputs_of(world_cache, domains=DOMAINS), inputs_of(world_cache)
    keys = [[recipe.key() for recipe in of.models.recipes()] for of in (narrow, whole)]
    assert keys[0] == keys[1] and len(keys[0]) > 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"domains": ["dream_theft", "arson"]},
            r"data\.domains must be harm categories of the data \(beast_waking, .*\), got arson",
        ),
        (
            {"name": "safe_rlhf", "domains": DOMAINS},
            r"data\.domains must be harm categories of the data \(which name none\), got dream",
        ),
        ({"domains": DOMAINS, "num_samples": 9000}, r"data\.num_samples must be at most 4305 "),
    ],
)
def test_domains_that_the_data_lack_are_refused(
    data: dict[str, Any], message: str, world_cache: Path
) -> None:
    with pytest.raises(DataError, match=message):
        check_rows(inputs_of(world_cache, **data))
