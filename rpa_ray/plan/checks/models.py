"""Whether the models that a config names are there and whole, before anything is started."""

import json
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rpa_ray.config import (
    EMBEDDED_MODELS,
    ConfigError,
    ExperimentSettings,
)
from rpa_ray.data.errors import last_line
from rpa_ray.data.hub_model import is_hub_model, pinned_model
from rpa_ray.data.template import Template
from rpa_ray.defences import defence_of
from rpa_ray.plan.checks.architectures import Use, check_same_weights, check_use
from rpa_ray.plan.checks.context import context_tokens
from rpa_ray.plan.checks.generation import check_generation
from rpa_ray.plan.checks.model_files import check_files, stored_weights
from rpa_ray.plan.checks.tokenizer import check_tokenizer
from rpa_ray.plugin import Need
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs, own_reference
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.scoring.size import POSITION_TABLES

LANGUAGE_MODEL = Use()


def model_checks(settings: ExperimentSettings) -> Iterator[Callable[[], None]]:
    """Yield checks that a cell's models are embedded, whole folders of their kind, or on the Hub.

    Of a folder the tokenizer, the configs and the headers of the weights are read. A check raises
    a ConfigError with the key that names the model, or a DataError where the template of the policy
    is one that answers cannot be learned in.
    """
    yield partial(_check_finished_judges, settings)
    yield partial(_check_refusing_model, settings)
    is_chat = Template(settings.data.template) is Template.MODEL_CHAT
    for key, named, use in _named_models(settings):
        if named is not None and not (named in EMBEDDED_MODELS and use.num_labels is None):
            writes_chat = is_chat and use.served_on is not None
            yield partial(_check_model, named, use, writes_chat, key)
    yield partial(_check_read_tokens, settings)


def _check_finished_judges(settings: ExperimentSettings) -> None:
    for name, judge in settings.evaluation.judges.items():
        if judge.trained and judge.path is None:
            raise ConfigError(
                f"evaluation.{name}.path",
                f"be given where evaluation.{name}.trained is true",
                None,
                "Name the finished classifier.",
            )


def _check_read_tokens(settings: ExperimentSettings) -> None:
    """Refuse to train a classifier on longer texts than its model can read."""
    groups = {"data.reward_model": settings.data.reward_model} | {
        f"evaluation.{name}": judge
        for name, judge in settings.evaluation.judges.items()
        if not judge.trained
    }
    for key, group in groups.items():
        if group.path is None or not Path(group.path, "config.json").is_file():
            continue
        if not _has_learned_positions(Path(group.path), f"{key}.path"):
            continue
        context = context_tokens(Path(group.path), f"{key}.path")
        if group.max_tokens > context:
            raise ConfigError(
                f"{key}.max_tokens",
                f"be at most {context} (the context of {group.path})",
                group.max_tokens,
                "Lower it or take a model with a longer context.",
            )


def _has_learned_positions(folder: Path, key: str) -> bool:
    """Return whether a model reads no text beyond a table of positions."""
    names = {
        name.removesuffix(".weight").rpartition(".")[2] for name in stored_weights(folder, key)
    }
    return bool(names & {*POSITION_TABLES})


def _named_models(settings: ExperimentSettings) -> list[tuple[str, str | None, Use]]:
    """Return the key of every model that may be named, its name, and what it is used as."""
    data, evaluation = settings.data, settings.evaluation
    defence = defence_of(settings.defence)
    served = Use(served_on="gpu" if settings.cluster.gpus_of("rollout_worker") else "cpu")
    return [
        ("model.path", settings.model.path, served),
        ("attack.reference", own_reference(settings), LANGUAGE_MODEL),
        *(
            ("defence.model", named, LANGUAGE_MODEL)
            for named in (defence.reference, defence.compared_model)
            if isinstance(named, str)
        ),
        (
            "data.refusals.model",
            None if data.safe_answers == "dataset" else data.refusals.model,
            served,
        ),
        ("data.reward_model.path", data.reward_model.path, Use(num_labels=1, is_start=True)),
        ("data.refusals.judge", data.refusals.judge, Use(num_labels=2)),
        *(
            (f"evaluation.{name}.path", judge.path, Use(num_labels=2, is_start=not judge.trained))
            for name, judge in evaluation.judges.items()
        ),
        ("evaluation.perplexity_model", evaluation.perplexity_model, LANGUAGE_MODEL),
        ("evaluation.helpfulness_model", evaluation.helpfulness_model, Use(num_labels=1)),
    ]


def _check_refusing_model(settings: ExperimentSettings) -> None:
    """Refuse an embedded model where refusals are to be written in another language than its own.

    Raises:
        ConfigError: with the model under attack.
    """
    if settings.data.safe_answers == "dataset" or settings.data.world != "real":
        return
    model = settings.data.refusals.model
    if model in EMBEDDED_MODELS and settings.model.path not in EMBEDDED_MODELS:
        raise ConfigError(
            "data.refusals.model",
            "be a model that reads the same language as the one under attack "
            f"({settings.model.path})",
            model,
            "Name that model here too, or the aligned one it was made from.",
        )


def _check_model(path: str, use: Use, writes_chat: bool, key: str) -> None:
    """Refuse a path that is neither a whole Hugging Face folder nor a model of the Hub."""
    folder = Path(path)
    if os.path.exists(folder):
        try:
            files = tuple((f.name, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
            _check_folder(folder, files, use, writes_chat)
        except OSError as error:
            rule = "be a model folder with a config.json that can be read"
            raise ConfigError(key, rule, path, f"{last_line(error)}: check it.") from error
        except ConfigError as error:
            raise ConfigError(key, error.rule, error.value, error.remedy) from error
    elif is_hub_model(path):
        pinned_model(path, key)
    else:
        takes_embedded = f".{key}".endswith(
            (".model.path", ".attack.reference", ".refusals.model", ".defence.model")
        )
        embedded = f"{', '.join(EMBEDDED_MODELS)}, " if takes_embedded else ""
        raise ConfigError(
            key,
            f"be {embedded}a Hub id (owner/name[@revision]), or a folder with a config.json",
            path,
            "There is no such folder: check the path.",
        )


@lru_cache(maxsize=64)
def _check_folder(
    folder: Path, files: tuple[tuple[str, int], ...], use: Use, writes_chat: bool
) -> None:
    """Refuse a folder that is not what it is used as; once as long as its ``files`` stay.

    Raises:
        ConfigError: without the key that names it.
    """
    check_files(folder, "")
    _refuse_foreign_code(folder / "config.json", "")
    _refuse_foreign_tokenizer(folder / "tokenizer_config.json", "")
    weights = stored_weights(folder, "")
    config = check_use(folder, weights, use, "")
    check_tokenizer(folder, config, writes_chat=writes_chat, key="")
    if use.num_labels is None:
        check_generation(folder, config, "")


def _refuse_foreign_code(config: Path, key: str) -> None:
    settings = json.loads(config.read_text(encoding="utf-8"))
    if "auto_map" not in settings:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if settings.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise ConfigError(
            key,
            "be of an architecture that transformers has itself",
            f"model_type {settings.get('model_type')!r} in {config}",
            "Code that comes with a model is not run: take another model.",
        )


def _refuse_foreign_tokenizer(config: Path, key: str) -> None:
    """Refuse a tokenizer that only code of its own can read; one without a config is plain."""
    if not config.is_file():
        return
    settings = json.loads(config.read_text(encoding="utf-8"))
    if "auto_map" not in settings:
        return
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    name = str(settings.get("tokenizer_class"))
    if tokenizer_class_from_name(name) is None:
        raise ConfigError(
            key,
            "have a tokenizer that transformers has itself",
            f"tokenizer_class {name!r} in {config}",
            "Code that comes with a model is not run: take another model.",
        )


def check_same_tokens(inputs: CellInputs) -> None:
    """Refuse a reference whose tokens are not those of the model under attack.

    A model of the Hub that is not on this machine yet is taken on trust.

    Raises:
        ConfigError: the two have different vocabularies.
    """
    settings = inputs.settings
    policy = settings.model.path
    defence = defence_of(settings.defence)
    for key, named in (
        ("attack.reference", own_reference(settings)),
        ("defence.model", defence.reference),
        ("defence.model", defence.compared_model),
    ):
        if not isinstance(named, str) or named == policy:
            continue
        expected, found = (_vocabulary(path, inputs.data) for path in (policy, named))
        if None not in (expected, found) and found != expected:
            raise ConfigError(
                key,
                f"be a model with the tokens of the one under attack ({policy})",
                named,
                "Name a model that was made from the same one.",
            )


def check_compared_weights(inputs: CellInputs) -> None:
    """Refuse a model whose weights a defence compares with others; no weight is read.

    One of the Hub that is not on this machine yet is taken on trust.

    Raises:
        ConfigError: the two have other weights, by name or shape.
    """
    policy, defence = inputs.settings.model.path, defence_of(inputs.settings.defence)
    named = defence.compared_model
    if Need.COMPARED_WEIGHTS not in defence.needs or not isinstance(named, str):
        return
    models = [inputs.data.language_model(path) for path in (policy, named)]
    types = [model.model_type for model in models if isinstance(model, ModelRecipe)]
    if len(set(types)) > 1:
        raise ConfigError(
            "defence.model",
            f"be of the architecture of the model under attack ({types[0]})",
            f"{named} ({types[1]})",
            "Name another model.",
        )
    like, folder = (_folder(path, inputs) for path in (policy, named))
    if like is not None and folder is not None and not {policy, named} <= set(EMBEDDED_MODELS):
        weights = stored_weights(folder, "defence.model")
        check_same_weights(folder, weights, like, "defence.model")


def _folder(path: str, inputs: CellInputs) -> Path | None:
    """Return where a language model lies, None where it is not on this machine."""
    model = inputs.data.language_model(path)
    folder = model.folder(inputs.cache) if isinstance(model, ModelRecipe) else Path(model)
    return folder if (folder / "config.json").is_file() else None


def _vocabulary(path: str, data: CellData) -> Any:
    """Return the tokens of a model with their ids, None where they are not to be had."""
    folder = Path(path)
    if path in EMBEDDED_MODELS:
        folder = data.world_folder / "tokenizer"
    file = folder / "tokenizer.json"
    return _vocabulary_in(file, file.stat().st_mtime_ns) if file.is_file() else None


@lru_cache(maxsize=4)
def _vocabulary_in(file: Path, changed_ns: int) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
