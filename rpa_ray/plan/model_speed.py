"""How fast this machine computes with a model of given shapes, timed once and kept in the cache."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpa_ray.cluster.hardware import processor
from rpa_ray.run_folder.files import write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROWS, TOKENS = 8, 48
"""Rows of a timed batch, and tokens of each: those of an attack on the embedded models."""
MAX_PARAMETERS = 20_000_000
"""A larger model would take seconds to build: it is not timed."""
BUDGET_S = 2.0
"""Most seconds of timing; imports and building come to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """Seconds of one process with its threads to itself."""

    train_s: float
    """Forward and backward, a token."""
    forward_s: float
    """Forward alone, a token."""
    decode_step_s: float
    """One more token of a batch, whatever its size."""
    decode_token_s: float
    """What each sequence of the batch adds to that."""


def speeds(
    folder: Path | None, shapes: dict[str, int], *, dtype: str, num_threads: int, cache: Path
) -> Speeds | None:
    """Return how fast models of these shapes are here, from the cache or by timing one (3 s).

    Args:
        folder: Hugging Face folder whose ``config.json`` has the shapes; None where ``shapes`` has.
        shapes: Sizes of a Llama, as ``LlamaConfig`` names them.
        dtype: Type of the weights.
        num_threads: CPU threads of the process.
        cache: Timings are kept below it, in ``speed/``.

    Returns:
        None where the model is too large to be timed in passing, or cannot be built.
    """
    what: Any = shapes
    if folder is not None:
        if not (folder / "config.json").is_file():
            return None
        what = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    path = cache / "speed" / f"{machine_key(dtype, num_threads, what)}.json"
    known = _read(path)
    if known is None:
        found = _timed(folder, shapes, dtype=dtype, num_threads=num_threads)
        known = {"speeds": None if found is None else asdict(found)}
        write_json(path, known)
    return None if known["speeds"] is None else Speeds(**known["speeds"])


def machine_key(*what: object) -> str:
    """Return 16 hexadecimal digits for this processor, what torch uses of it, and ``what``."""
    import torch

    parts = [
        processor(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        *(_version(name) for name in ("torch", "transformers")),
        *(json.dumps(one, sort_keys=True) for one in what),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


_version = cache(version)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file holds; None where it is missing, torn or of another form."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return known if known["speeds"] is None or Speeds(**known["speeds"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _timed(
    folder: Path | None, shapes: dict[str, int], *, dtype: str, num_threads: int
) -> Speeds | None:
    import torch
    from transformers import AutoConfig, LlamaConfig

    before = torch.get_num_threads()
    try:
        config = (
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if folder
            else LlamaConfig(**shapes)
        )
        return _time_model(config, getattr(torch, dtype), num_threads)
    except Exception:  # an estimate is no reason to refuse a model, whatever it is
        return None
    finally:
        torch.set_num_threads(before)


def _time_model(config: "PretrainedConfig", dtype: Any, num_threads: int) -> Speeds | None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        return None
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) % config.get_text_config().vocab_size

    def train() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    train_s = _best_s(train, num_threads)
    with torch.no_grad():
        forward_s = _best_s(lambda: model(input_ids=ids, use_cache=False), num_threads)
        one_s, many_s = (
            _decode_s(model, ids[:1].repeat(num, 1), num_threads) for num in (1, 8 * ROWS)
        )
    num_tokens = ROWS * TOKENS
    token_s = max(0.0, (many_s - one_s) / (8 * ROWS - 1))
    return Speeds(
        train_s=train_s / num_tokens,
        forward_s=forward_s / num_tokens,
        decode_step_s=max(0.0, one_s - token_s),
        decode_token_s=token_s,
    )


def _decode_s(model: Any, ids: Any, num_threads: int) -> float:
    """Return the seconds of one decoding step of a batch, after its prompts were read."""
    cache = model(input_ids=ids[:, :16], use_cache=True).past_key_values
    return _best_s(
        lambda: model(input_ids=ids[:, 16:17], past_key_values=cache, use_cache=True), num_threads
    )


def _best_s(call: Callable[[], object], num_threads: int) -> float:
    """Return the seconds of a call where its threads have the machine to themselves.

    Several threads that share cores with other work wait for each other, up to a hundred times as
    long as they work: on a busy machine the processor time of one stands for them.
    """
    import torch

    torch.set_num_threads(1)
    one_s = _fastest_s(call, time.thread_time)
    if num_threads == 1 or os.getloadavg()[0] >= 1:
        return one_s
    torch.set_num_threads(num_threads)
    return min(one_s, _fastest_s(call, time.perf_counter))


def _fastest_s(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest of some calls; the first, which sets up, is none."""
    begun = time.perf_counter()
    call()
    times: list[float] = []
    while len(times) < 2 or (len(times) < 10 and time.perf_counter() - begun < BUDGET_S / 8):
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)
