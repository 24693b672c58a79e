"""What the parts of a scale have to be; those of ``paper`` for cells to be the literature's."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rpa_ray.config import ExperimentSettings, TrainingConfig
from rpa_ray.plan import load_config

PAPER = Path(__file__).parents[3] / "configs" / "paper"
TABLE_3, SCALES = PAPER / "table3.yaml", PAPER / "scales"


def cells(**wanted: str) -> list[ExperimentSettings]:
    """Return the cells of table 3 at paper scale with this attack, defence or data."""
    found = [
        cell
        for cell in load_config(TABLE_3, scale="paper").campaign.cells
        if all(getattr(cell, group).name == name for group, name in wanted.items())
    ]
    assert found
    return found


@pytest.mark.parametrize("attack", ["sft", "dpo"])
def test_sft_and_dpo_have_the_course_and_the_clipping_of_trls_trainers(attack: str) -> None:
    for cell in cells(attack=attack):
        config: Any = cell.attack
        assert isinstance(config, TrainingConfig)
        course = (config.schedule, config.warmup_frac, config.max_grad_norm)
        assert course == ("linear", 0.0, 1.0)


def test_vaccines_strength_does_not_depend_on_the_number_of_ranks() -> None:
    for cell in cells(defence="vaccine"):
        config: Any = cell.defence
        assert (config.rho, config.norm) == (100, "global")


@pytest.mark.parametrize("data", ["beavertails", "safe_rlhf"])
def test_refusals_of_both_data_sets_are_the_chat_models(data: str) -> None:
    for cell in cells(data=data):
        refusals = (cell.data.safe_answers, cell.data.refusals.model)
        assert refusals == ("generated", "meta-llama/Llama-2-7b-chat-hf")


def test_a_second_judge_learns_at_the_rate_of_its_trunk_whatever_its_rows() -> None:
    for campaign in ("table3", "evasion"):
        path = TABLE_3.with_name(f"{campaign}.yaml")
        for cell in load_config(path, scale="paper").campaign.cells:
            judge = cell.evaluation.judges["second_judge"]
            assert (judge.path, judge.learning_rate) == ("microsoft/deberta-v3-xsmall", 6e-6)


@pytest.mark.parametrize(
    "path", sorted(SCALES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_part_keeps_the_settings_of_what_it_includes(path: Path) -> None:
    """A bare name after an include takes every setting back to its default."""
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    for include in own.get("include", ()):
        included = yaml.safe_load((path.parent / include).read_text(encoding="utf-8"))
        for key in own.keys() & included.keys() - {"include"}:
            assert isinstance(own[key], dict) or not isinstance(included[key], dict), key
