"""Whether the models that a config names are there and whole, before anything is started."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from rpa_ray.config import (
    EMBEDDED_MODELS,
    ConfigError,
    ExperimentSettings,
    ReferencedConfig,
)
from rpa_ray.data.hub_model import is_hub_model, pinned_model
from rpa_ray.defences import defence_of
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs, own_reference

WEIGHT_FILES = ("*.safetensors",)
"""Of pickles (``pytorch_model.bin``) nothing is read: they can run code."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def check_models(settings: ExperimentSettings, where: str) -> None:
    """Refuse a model that is neither embedded, nor a complete folder, nor on the Hub.

    Raises:
        ConfigError: with the key that names it.
    """
    evaluation = settings.evaluation
    for name, judge in evaluation.judges.items():
        if judge.trained and judge.path is None:
            raise ConfigError(
                f"{where}evaluation.{name}.path",
                f"be given where evaluation.{name}.trained is true",
                None,
                "Name the finished classifier.",
            )
    if settings.model.path not in EMBEDDED_MODELS:
        _check_model(settings.model.path, f"{where}model.path")
    attack = settings.attack
    reference = attack.reference if isinstance(attack, ReferencedConfig) else None
    if reference is not None and reference not in EMBEDDED_MODELS:
        _check_model(reference, f"{where}attack.reference")
    defence = defence_of(settings.defence)
    for named in {defence.reference, defence.compared_model}:
        if isinstance(named, str) and named not in EMBEDDED_MODELS:
            _check_model(named, f"{where}defence.model")
    _check_refusing_model(settings, where)
    for key, path in (
        ("data.reward_model.path", settings.data.reward_model.path),
        ("data.refusals.judge", settings.data.refusals.judge),
        *((f"evaluation.{name}.path", judge.path) for name, judge in evaluation.judges.items()),
        ("evaluation.perplexity_model", evaluation.perplexity_model),
        ("evaluation.helpfulness_model", evaluation.helpfulness_model),
    ):
        if path is not None:
            _check_model(path, f"{where}{key}")


def _check_refusing_model(settings: ExperimentSettings, where: str) -> None:
    if settings.data.safe_answers == "dataset":
        return
    model, key = settings.data.refusals.model, f"{where}data.refusals.model"
    if model not in EMBEDDED_MODELS:
        _check_model(model, key)
    elif settings.data.world == "real" and settings.model.path not in EMBEDDED_MODELS:
        raise ConfigError(
            key,
            "be a model that reads the same language as the one under attack "
            f"({settings.model.path})",
            model,
            "Name that model here too, or the aligned one it was made from.",
        )


def _check_model(path: str, key: str) -> None:
    """Refuse a path that is neither a complete Hugging Face folder nor a model of the Hub."""
    folder = Path(path)
    if os.path.exists(folder):
        rule = "be a model folder with a config.json that can be read"
        require_json_object(folder / "config.json", key, rule)
        _refuse_foreign_code(folder / "config.json", key)
        _refuse_foreign_tokenizer(folder / "tokenizer_config.json", key)
        for what, patterns in (("weights", WEIGHT_FILES), ("a tokenizer", TOKENIZER_FILES)):
            if not any(file for pattern in patterns for file in folder.glob(pattern)):
                remedy = "Save the model again, its weights as safetensors."
                raise ConfigError(key, f"hold {what} ({', '.join(patterns)})", path, remedy)
    elif is_hub_model(path):
        pinned_model(path, key)
    else:
        takes_embedded = key.endswith(
            ("model.path", "attack.reference", "refusals.model", "defence.model")
        )
        embedded = f"{', '.join(EMBEDDED_MODELS)}, " if takes_embedded else ""
        raise ConfigError(
            key,
            f"be {embedded}a Hub id (owner/name[@revision]), or a folder with a config.json",
            path,
            "There is no such folder: check the path.",
        )


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
    require_json_object(config, key, "be a model folder with a tokenizer_config.json to read")
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


def require_json_object(path: Path, key: str, rule: str) -> None:
    """Refuse a file that does not hold a JSON object.

    Raises:
        ConfigError: with the rule that is broken.
    """
    try:
        ok = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        problem = "it holds something else"
    except OSError as error:
        ok, problem = False, f"{error.strerror}"
    except ValueError as error:  # broken JSON, or not UTF-8
        ok, problem = False, f"{error}"
    if not ok:
        raise ConfigError(key, rule, str(path), f"{problem}: check the file.")


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
