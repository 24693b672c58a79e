"""Whether the Hugging Face Hub gives out a model, asked before anything is started."""

import os
import threading

from rpa_ray.config import ConfigError

HUB_LIMIT_S = 2.0
"""Longest wait for the Hub's answer."""


def require_hub_model(repo: str, key: str) -> None:
    """Return if the model is in the local Hub cache, or the Hub knows it.

    Raises:
        ConfigError: it is neither; ``key`` is the config path that names it.
    """
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, "config.json"), str):
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        reason: str | None = "not in the local Hub cache, and HF_HUB_OFFLINE is set"
    else:
        reason = _hub_problem(repo)
    if reason is not None:
        raise ConfigError(
            key,
            "be a folder with a model, or a Hub id that can be read",
            repo,
            f"There is no such folder; Hub: {reason}. Check path, spelling and access rights.",
        )


def _hub_problem(repo: str) -> str | None:
    """Return why the Hub does not give out the model, None where it does."""
    import httpx
    from huggingface_hub import HfApi

    outcome: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(repo, timeout=HUB_LIMIT_S)
            outcome.append(None)
        except (httpx.HTTPError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            outcome.append(lines[-1][:200])

    # A daemon thread: the time limit of a request does not bound the look-up of a host name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_LIMIT_S)
    return outcome[0] if outcome else f"no answer within {HUB_LIMIT_S:g} s"
