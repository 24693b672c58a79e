"""Models of the Hugging Face Hub: which commit an id names, and the folder that holds its files.

The Hugging Face libraries are imported on first use: they are slow to import.
"""

import os
from collections.abc import Set
from functools import lru_cache
from pathlib import Path

from rpa_ray.config import ConfigError, ExperimentSettings, with_models
from rpa_ray.data.errors import last_line
from rpa_ray.data.hub import HUB_ID, HUB_LIMIT_S, is_offline
from rpa_ray.deadline import answer_within

WEIGHT_FILES = "*.safetensors"
MODEL_FILES = (WEIGHT_FILES, "*.json", "*.jinja", "*.model", "*.txt")
"""What is downloaded: weights, sizes, tokenizer. No pickles and no code."""


class ModelOutOfReach(ConfigError):
    """A model that the Hub could not be asked for; ``value`` is its id."""


def is_hub_model(named: str) -> bool:
    """Return whether a model is named by a Hub id ``owner/name[@revision]``, and is no folder."""
    is_id = HUB_ID.fullmatch(named) is not None and not named.startswith(".")
    return is_id and not os.path.exists(named)


def pinned_model(named: str, key: str) -> str:
    """Return the Hub id of a model with the hash of the commit that its revision names.

    Without a revision that is the newest. The Hub is asked once a process, so that a model is of
    one commit wherever it is named; where HF_HUB_OFFLINE forbids to ask, the local cache tells.

    Args:
        named: A Hub id.
        key: The config path that names it.

    Raises:
        ModelOutOfReach: The Hub does not answer within :data:`~rpa_ray.data.hub.HUB_LIMIT_S`
            seconds, or it is not to be asked and the model is not in the cache.
        ConfigError: The Hub does not give it out.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, revision = _split(named)
    try:
        commit = _cached_commit(repo, revision) if is_offline() else _commit(repo, revision)
    except (httpx.HTTPError, OSError, ValueError) as error:
        answered = isinstance(error, HfHubHTTPError | HFValidationError)
        raise (ConfigError if answered else ModelOutOfReach)(
            key,
            "be a folder with a model, or a Hub id that can be read",
            named,
            f"There is no such folder; Hub: {last_line(error)}. Check path, spelling and access "
            "rights; with HF_HUB_OFFLINE=1 the local cache is read.",
        ) from error
    return f"{repo}@{commit}"


def with_pinned_models(
    settings: ExperimentSettings, unasked: Set[str] = frozenset()
) -> ExperimentSettings:
    """Return the settings with the commit of every model of the Hub.

    Args:
        settings: Of a cell.
        unasked: Hub ids that stay as they are.

    Raises:
        ConfigError: It cannot be told.
    """

    def pinned(key: str, named: str) -> str:
        is_asked = is_hub_model(named) and named not in unasked
        return pinned_model(named, key) if is_asked else named

    return with_models(settings, pinned)


def hub_models(settings: ExperimentSettings) -> dict[str, str]:
    """Return the Hub ids of models by the config path that names them."""
    found: dict[str, str] = {}

    def note(key: str, named: str) -> str:
        if is_hub_model(named):
            found[key] = named
        return named

    with_models(settings, note)
    return found


def model_folder(named: str, *, has_weights: bool = True) -> str:
    """Return the folder of a model: of a Hub id its files at that commit, fetched where missing.

    Processes of one machine that ask at the same time fetch a file once. ``has_weights`` says
    whether the weights are needed: a rollout engine is pushed its own.
    """
    if not is_hub_model(named):
        return named
    from huggingface_hub import snapshot_download

    repo, revision = _split(named)
    return snapshot_download(
        repo,
        revision=revision,
        allow_patterns=[name for name in MODEL_FILES if has_weights or name != WEIGHT_FILES],
        # What it reads of the environment itself does not keep it from asking about a commit.
        local_files_only=is_offline(),
    )


def _split(named: str) -> tuple[str, str | None]:
    repo, _, revision = named.partition("@")
    return repo, revision or None


@lru_cache(maxsize=32)
def _commit(repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    found = answer_within(
        HUB_LIMIT_S, lambda: HfApi().model_info(repo, revision=revision, timeout=HUB_LIMIT_S)
    )
    if found.sha is None:
        raise ValueError("it names no commit")
    return found.sha


def _cached_commit(repo: str, revision: str | None) -> str:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(found, str):
        raise OSError("not in the local cache, and HF_HUB_OFFLINE is set")
    return Path(found).parent.name  # snapshots/<commit>/config.json
