"""Settings that follow from the data and the models at hand where the user has not set them.

The embedded world has enough of everything: its experiments stay as they are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rpa_ray.config import EMBEDDED_MODELS, ConfigError, ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.data.template import Template
from rpa_ray.plan.checks.problems import Problems

Check = Callable[[ExperimentSettings], None]
_SIZES = (
    "data.num_samples",
    "data.reward_model.num_pairs",
    "evaluation.judge.num_rows",
    "evaluation.second_judge.num_rows",
    "evaluation.num_prompts",
)


def following(settings: ExperimentSettings) -> ExperimentSettings:
    """Return the settings with what follows from the model under attack and from the data.

    A model whose tokenizer has a chat template is asked in it. Of real text judge, reward model
    and perplexity begin with the model under attack where they name none: a model of the fictional
    world can say nothing of it. Where the preferences are a file of one's own and no helpfulness
    dialogues are named, nothing is measured with any.
    """
    data, own = settings.data, settings.model.path
    is_own = own not in EMBEDDED_MODELS
    found = settings
    if is_own and not _is_set(settings, "data.template") and _has_chat_template(own):
        found = _with(found, "data.template", Template.MODEL_CHAT.value)
    if data.world == "embedded":
        return found
    if not _is_set(settings, "data.helpful_path") and _is_local(data.path):
        found = _with(found, "data.helpful_path", None)
    if is_own:
        for key in _MEASURING:
            group = _value(found, key.rpartition(".")[0])
            if group is not None and _value(found, key) is None and not _is_finished(group):
                found = _with(found, key, own)
    return found


_MEASURING = (
    "data.reward_model.path",
    "evaluation.judge.path",
    "evaluation.second_judge.path",
    "evaluation.perplexity_model",
)


def fitted(
    settings: ExperimentSettings, check: Check, problems: Problems, where: str
) -> tuple[ExperimentSettings, bool]:
    """Return settings that fit the data, as far as errors say which do, and whether all do.

    Sizes that were not set are lowered to what the data have; whatever else does not fit is a
    problem, and the settings that would fit are tried to find the next.

    Args:
        settings: Of a cell.
        check: Refuses what does not fit the data, one thing at a time.
        problems: Takes what is wrong, sizes that were set and do not fit among it.
        where: Prefix of the cell's keys in errors.
    """
    asked, tried, told = settings, set[str](), set[str]()
    while True:
        try:
            check(settings)
        except (ConfigError, DataError) as error:
            key = next(iter(error.fitting), "")
            value: Any = error.fitting.get(key)
            if key in _SIZES:
                value = _fitting(settings, key, value)
            if not value or key in tried:
                problems.note(error, where)
                return settings, False
            tried.add(key)
            own = _own_key(settings, key)
            if key not in _SIZES or _is_set(asked, own):
                problems.note_fitting(None if own in told else error, where, own, value)
                told.add(own)
            settings = _with(settings, own, value)
        else:
            return settings, True


def departures(asked: ExperimentSettings, found: ExperimentSettings) -> dict[str, Any]:
    """Return, by key, the settings that were not asked for but follow, with their values."""
    keys = ["data.template", "data.helpful_path", *_SIZES, *_MEASURING]
    pairs = {key: (_value(asked, key), _value(found, key)) for key in keys}
    return {key: new for key, (old, new) in pairs.items() if old != new}


def _is_finished(group: Any) -> bool:
    """Return whether settings are of a classifier that is used as it is, which has to be named."""
    return bool(getattr(group, "trained", False))


def _has_chat_template(path: str) -> bool:
    if Path(path, "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads(Path(path, "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # refused by the check of models
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _is_local(path: str | None) -> bool:
    return path is not None and Path(path).expanduser().exists()


def _fitting(settings: ExperimentSettings, key: str, most: int) -> int:
    """Return the largest size that fits; 0 where not one batch does."""
    if key == "data.num_samples" and settings.training is not None:
        return most // settings.training.batch_size * settings.training.batch_size
    group, _, _ = _own_key(settings, key).rpartition(".")
    batch_size = getattr(_value(settings, group), "batch_size", 1)
    return most if most >= batch_size else 0


def _own_key(settings: ExperimentSettings, key: str) -> str:
    """Return the key that says a size: the second judge may have the settings of the first."""
    if settings.evaluation.second_judge is None:
        return key.replace("second_judge", "judge")
    return key


def _value(settings: ExperimentSettings, key: str) -> Any:
    found: Any = settings
    for name in key.split("."):
        found = getattr(found, name, None)
    return found


def _is_set(settings: ExperimentSettings, key: str) -> bool:
    found: Any = settings
    for name in key.split("."):
        if not isinstance(found, BaseModel) or name not in found.model_fields_set:
            return False
        found = getattr(found, name)
    return True


def _with(settings: Any, key: str, value: Any) -> Any:
    """Return settings with the value at a key."""
    name, _, rest = key.partition(".")
    inner = _with(getattr(settings, name), rest, value) if rest else value
    return settings.model_copy(update={name: inner})
