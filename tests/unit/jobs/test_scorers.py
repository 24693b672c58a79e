"""What each scoring model is asked, and in which words."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rpa_ray.config import ExperimentSettings
from rpa_ray.data.helpful import helpful_pairs
from rpa_ray.data.template import PLAIN_QA_ANSWERED
from rpa_ray.evaluation.fluency import ppl_limit
from rpa_ray.jobs.instruments import fluency_limit, score
from rpa_ray.jobs.scorers import (
    DIALOGUE_ANSWERED,
    MAX_TEXT_TOKENS,
    as_dialogues,
    pricing_judge,
    scorer_specs,
)
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_models import CellInputs, CellModels

JUDGES = {"judge": {"max_tokens": 64}, "second_judge": {"max_tokens": 96}}


@pytest.fixture
def settings() -> ExperimentSettings:
    return parse_tree({"attack": "ppo", "evaluation": JUDGES})


@pytest.fixture
def models(settings: ExperimentSettings, world_cache: Path) -> CellModels:
    return CellInputs(settings, world_cache).models


class Assembly:
    """Remembers what scorers are asked."""

    def __init__(self, inputs: CellInputs, models: CellModels) -> None:
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []
        self.inputs, self.models, self.settings = inputs, models, inputs.settings
        self.scorer_names = frozenset(scorer_specs(models, inputs.settings, inputs.cache))
        self.process = SimpleNamespace(scorers=self, cache=inputs.cache)
        self.workers = SimpleNamespace(on_main=lambda call: call())

    def score(self, name: str, pairs: Any) -> list[float]:
        self.asked.append((name, list(pairs)))
        return [0.5] * len(pairs)

    def answer_nll(self, name: str, pairs: Any) -> list[Any]:
        self.asked.append((name, list(pairs)))
        return [SimpleNamespace(perplexity=float(len(answer))) for _, answer in pairs]


def test_every_scorer_reads_as_many_tokens_as_it_learned_from(
    settings: ExperimentSettings, models: CellModels, world_cache: Path
) -> None:
    specs = scorer_specs(models, settings, world_cache)
    lengths = {name: spec.max_length for name, spec in specs.items()}
    assert lengths == {
        "judge": 64,
        "second_judge": 96,
        "reward": 128,
        "perplexity": MAX_TEXT_TOKENS,
        "helpfulness": MAX_TEXT_TOKENS,
    }
    assert specs["perplexity"].template == "{answer}"
    assert specs["judge"].path != specs["second_judge"].path


def test_the_embedded_helpfulness_model_reads_what_it_learned_from(
    settings: ExperimentSettings, models: CellModels, world_cache: Path
) -> None:
    assert scorer_specs(models, settings, world_cache)["helpfulness"].template == PLAIN_QA_ANSWERED


def test_a_finished_helpfulness_model_reads_a_dialogue_that_ends_with_the_answer(
    settings: ExperimentSettings, models: CellModels, world_cache: Path, tmp_path: Path
) -> None:
    named = replace(models, helpfulness=str(tmp_path))
    assembly: Any = Assembly(CellInputs(settings, world_cache), named)
    score(assembly, "helpfulness")([("How do I mend a lamp?", "Turn the screw.")])
    ((_, (pair,)),) = assembly.asked
    template = scorer_specs(named, settings, world_cache)["helpfulness"].template
    text = template.format(prompt=pair[0], answer=pair[1])
    assert text == "\n\nHuman: How do I mend a lamp?\n\nAssistant: Turn the screw."


def test_a_scorer_of_the_hub_is_told_by_its_commit(
    settings: ExperimentSettings, models: CellModels, world_cache: Path
) -> None:
    named = replace(models, helpfulness="somebody/helpful@0123")
    spec = scorer_specs(named, settings, world_cache)["helpfulness"]
    assert spec.path == "somebody/helpful@0123"


def test_a_dialogue_of_the_public_set_is_read_as_it_is_written_there() -> None:
    one = "\n\nHuman: A lamp?\n\nAssistant:"
    for opening in (one, f"\n\nHuman: Hi\n\nAssistant: Hello{one}"):
        row = {"chosen": f"{opening} Yes.", "rejected": f"{opening} No."}
        (pair,) = helpful_pairs([row])
        ((prompt, answer),) = as_dialogues([(pair.prompt, pair.chosen)])
        assert DIALOGUE_ANSWERED.format(prompt=prompt, answer=answer) == row["chosen"]


def test_the_reported_judge_prices_nothing(models: CellModels) -> None:
    assert pricing_judge(models) == "second_judge"
    assert pricing_judge(replace(models, second_judge=None)) == "judge"


@pytest.mark.parametrize("model", ["chat", "base"])
def test_the_limit_of_fluency_is_that_of_the_data_whatever_the_model_answers(
    model: str, world_cache: Path
) -> None:
    cell = CellInputs(parse_tree({"attack": "none", "model": {"path": model}}), world_cache)
    assembly: Any = Assembly(cell, cell.models)
    limit = fluency_limit(assembly)
    ((name, pairs),) = assembly.asked
    assert name == "perplexity"
    held_out = cell.data.preferences.roles["evaluation"]
    assert {a for pair in held_out[:200] for a in (pair.safe, pair.unsafe)} <= {a for _, a in pairs}
    helpful = {pair.chosen for pair in cell.data.helpful_pairs("test")}
    assert {a for _, a in pairs} & helpful
    assert limit == ppl_limit([float(len(answer)) for _, answer in pairs])
