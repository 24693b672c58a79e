"""What a rollout engine is built from, and how vLLM is told.

vLLM is imported on first use, because its settings are environment variables that are read then.
"""

import hashlib
import math
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rpa_ray.config.cluster import ENGINE_FRAC

if TYPE_CHECKING:
    from vllm import LLM

TransferBackend = Literal["object_store", "nccl", "ipc"]

_CPU_SEQUENCES = 256
"""Answers that an engine on a CPU works on at once; others wait."""
_CPU_BLOCK = 128
"""Tokens of a block of vLLM's cache on a CPU."""
_MAX_CPU_KV_CACHE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What a rollout engine is built from; the weights come later, by a push."""

    model_path: str
    """Folder with a Hugging Face ``config.json``, or a Hub id at a commit, of which each worker has
    its own copy; weights and tokenizer are not read."""
    max_model_len: int
    """Longest prompt plus answer, in tokens."""
    dtype: str
    """Type of the served weights, as torch names it."""
    backend: TransferBackend = "object_store"
    """How the weights travel; see ``weight_sync.sync.choose_backend``."""
    gpu_memory_utilization: float = ENGINE_FRAC
    """Share of a GPU's memory that the engine may take, (0, 1]; not used on a CPU."""
    tensor_parallel_size: int = 1
    """GPUs that one engine spans."""
    max_num_seqs: int | None = None
    """Answers that it works on at once; None: vLLM's choice for a GPU, 256 on a CPU."""
    enforce_eager: bool | None = None
    """Whether it captures no CUDA graphs; None: on a CPU alone."""
    seed: int = 0
    """Seed of the engine; sampling is seeded by request, in ``Sampling``."""


def architecture_of(config: EngineConfig) -> tuple[object, ...]:
    """Return what an engine cannot change without being built anew."""
    path = Path(config.model_path) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"model_path must be a folder with a config.json, got {config.model_path}. "
            "Make the model first, or give a folder that this machine can read."
        )
    return (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        *astuple(replace(config, model_path="")),
    )


def build_engine(config: EngineConfig) -> "LLM":
    """Return an engine with random weights.

    Raises:
        ValueError: None can be built for the config, which no second try would change.
    """
    import torch

    try:
        return _llm(config)
    except (torch.OutOfMemoryError, torch.distributed.DistError):
        raise  # memory or a port that somebody else may give back
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"engine must be one that can be built for {config.model_path}, got "
            f"{type(e).__name__}: {e}. Take a model that vLLM serves on this machine."
        ) from e


def _llm(config: EngineConfig) -> "LLM":
    import torch
    from vllm import LLM

    has_gpu = torch.cuda.is_available()
    arguments = llm_arguments(config, has_gpu=has_gpu)
    if not has_gpu:
        arguments["kv_cache_memory_bytes"] = _cpu_kv_cache_bytes(config)
    return LLM(**arguments)


def llm_arguments(config: EngineConfig, *, has_gpu: bool) -> dict[str, Any]:
    """Return what vLLM's ``LLM`` is given by name, but for the size of a cache on a CPU."""
    return {
        "model": config.model_path,
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "generation_config": "vllm",
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs or (None if has_gpu else _CPU_SEQUENCES),
        "seed": config.seed,
        "tensor_parallel_size": config.tensor_parallel_size,
        # vLLM would take Ray where it runs in a placement group: workers without a GPU of theirs.
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else None,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": not has_gpu if config.enforce_eager is None else config.enforce_eager,
        # A cached prefix changes how a prompt is batched, and with it the last bits of its logits:
        # the same seed would give other tokens after other work. It would also outlive a push.
        "enable_prefix_caching": False,
        # On a CPU a seeded request whose prompt is read in two parts fails (vLLM 0.29).
        "enable_chunked_prefill": has_gpu,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": config.backend},
        "worker_extension_cls": "rpa_ray.weight_sync.receiving.WeightSyncExtension",
    }


def _cpu_kv_cache_bytes(config: EngineConfig) -> int:
    """Return what a CPU's sequences fill at their longest, in bytes, at most 1 GiB.

    vLLM writes all of its cache at start-up, 1 GiB in seconds. The environment's
    VLLM_CPU_KVCACHE_SPACE (GiB) goes before it.
    """
    import torch
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(config.model_path, trust_remote_code=False).get_text_config()
    num_heads = model.num_attention_heads
    head_width = getattr(model, "head_dim", None) or model.hidden_size // num_heads
    num_kv_heads = getattr(model, "num_key_value_heads", None) or num_heads
    num_sequences = config.max_num_seqs or _CPU_SEQUENCES
    num_tokens = num_sequences * math.ceil(config.max_model_len / _CPU_BLOCK) * _CPU_BLOCK
    num_values = 2 * model.num_hidden_layers * num_kv_heads * head_width * num_tokens
    num_bytes: int = num_values * getattr(torch, config.dtype).itemsize
    return min(num_bytes, _MAX_CPU_KV_CACHE_BYTES)
