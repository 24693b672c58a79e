"""The scoring models of a cell by name: what each is made from, and in which words it is asked."""

from collections.abc import Sequence
from pathlib import Path

from rpa_ray.actors.scoring import ScorerKind, ScorerSpec
from rpa_ray.config import ExperimentSettings
from rpa_ray.data.schema import ASSISTANT, HUMAN
from rpa_ray.data.template import PLAIN_QA_ANSWERED
from rpa_ray.recipes.cell_models import CellModels, Model, place_of
from rpa_ray.recipes.model import ModelRecipe

ANSWER_ALONE = "{answer}"
DIALOGUE_ANSWERED = f"{{prompt}}{ASSISTANT} {{answer}}"
"""A dialogue and its next answer, as helpfulness reward models learned from them."""
MAX_TEXT_TOKENS = 1024
"""Longest text that perplexity and helpfulness are asked of: the context of GPT-2. What we train
ourselves reads as many tokens as it learned from."""


def scorer_specs(
    models: CellModels, settings: ExperimentSettings, cache: Path
) -> dict[str, ScorerSpec]:
    """Return what every scoring model of a cell is made from, those that it asks for alone."""
    preferred = settings.data.reward_model.max_tokens
    read = {name: judge.max_tokens for name, judge in settings.evaluation.judges.items()}
    judged, second = read["judge"], read.get("second_judge", 0)
    rows: dict[str, tuple[Model | None, ScorerKind, str, int]] = {
        "reward": (models.reward_model, "reward", PLAIN_QA_ANSWERED, preferred),
        "cost": (models.cost_model, "reward", PLAIN_QA_ANSWERED, preferred),
        "summary": (models.summary, "reward", PLAIN_QA_ANSWERED, preferred),
        "judge": (models.judge, "harm_probability", PLAIN_QA_ANSWERED, judged),
        "second_judge": (models.second_judge, "harm_probability", PLAIN_QA_ANSWERED, second),
        "perplexity": (models.perplexity, "perplexity", ANSWER_ALONE, MAX_TEXT_TOKENS),
        "helpfulness": (
            models.helpfulness,
            "reward",
            DIALOGUE_ANSWERED if reads_dialogues(models) else PLAIN_QA_ANSWERED,
            MAX_TEXT_TOKENS,
        ),
    }
    return {
        name: ScorerSpec(
            path=place_of(model, cache), kind=kind, template=template, max_length=max_tokens
        )
        for name, (model, kind, template, max_tokens) in rows.items()
        if model is not None
    }


def pricing_judge(models: CellModels) -> str:
    """Return the name of the judge whose verdicts training may use: not the one that is reported.

    Without a second judge nothing is priced by one, and the first only watches.
    """
    return "judge" if models.second_judge is None else "second_judge"


def reads_dialogues(models: CellModels) -> bool:
    """Return whether helpfulness is asked in the form of a dialogue, whatever the policy reads.

    So it is of a finished model; that of the embedded world learned from questions and answers.
    """
    return not isinstance(models.helpfulness, ModelRecipe)


def as_dialogues(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return prompts as dialogues up to the answer, each beginning with the mark of a human turn.

    A prompt of several turns is a dialogue already; it has lost the white space before its first.
    """
    mark = HUMAN.lstrip()
    bare = [(prompt.strip().removeprefix(mark).lstrip(), answer) for prompt, answer in pairs]
    return [(f"{HUMAN} {prompt}", answer) for prompt, answer in bare]
