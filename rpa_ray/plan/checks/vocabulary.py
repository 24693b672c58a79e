"""Whether models whose probabilities are compared read and write the same tokens."""

import json
from pathlib import Path
from typing import Any

from rpa_ray.config import EMBEDDED_MODELS, ConfigError, DataSettings, ExperimentSettings
from rpa_ray.defences import defence_of
from rpa_ray.recipes.cell_models import own_reference
from rpa_ray.world.datasets import world_folder


def check_same_tokens(settings: ExperimentSettings, cache: Path) -> None:
    """Refuse a reference whose tokens are not those of the model under attack.

    A model of the Hub that is not on this machine yet is taken on trust.

    Raises:
        ConfigError: the two have different vocabularies.
    """
    policy = settings.model.path
    expected = _vocabulary(policy, settings.data, cache)
    defence = defence_of(settings.defence)
    for key, named in (
        ("attack.reference", own_reference(settings)),
        ("defence.model", defence.reference),
        ("defence.model", defence.compared_model),
    ):
        if not isinstance(named, str) or expected is None:
            continue
        if _vocabulary(named, settings.data, cache) not in (expected, None):
            raise ConfigError(
                key,
                f"be a model with the tokens of the one under attack ({policy})",
                named,
                "Name a model that was made from the same one.",
            )


def _vocabulary(path: str, data: DataSettings, cache: Path) -> Any:
    """Return the tokens of a model with their ids, None where they are not to be had."""
    folder = Path(path)
    if path in EMBEDDED_MODELS:
        folder = world_folder(data.world_seed, cache) / "tokenizer"
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
