"""Models on disk: Hugging Face folders that appear whole or not at all, and their fingerprints."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpa_ray.plugin.adapters import DOWN, PEFT_PREFIX, UP, WEIGHTS
from rpa_ray.run_folder.files import whole_folder
from rpa_ray.run_folder.names import MADE_FROM


def weights_sha256(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, types, shapes and bytes of weights in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in weights:
        tensor = weight.detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(
    folder: Path,
    *,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder with ``weights`` in safetensors; it appears all at once."""
    with _appearing(folder, record) as unfinished:
        model.save_pretrained(unfinished, state_dict=dict(weights))
        tokenizer.save_pretrained(unfinished)
        # The type of the module, which is not that of weights that were rounded.
        config = unfinished / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        (dtype,) = {str(weight.dtype).removeprefix("torch.") for weight in weights.values()}
        config.write_text(json.dumps(settings | {"dtype": dtype}, indent=2) + "\n")


def save_adapter(
    folder: Path,
    *,
    weights: Mapping[str, tuple[Tensor, Tensor]],
    rank: int,
    alpha: int,
    base_model: str,
    record: Mapping[str, Any],
) -> None:
    """Write a folder as peft writes a LoRA adapter; it appears all at once.

    Args:
        folder: Where to.
        weights: The halves [rank, in] and [out, rank] of the adapter of each linear layer.
        rank: The adapter's rank.
        alpha: The product of the halves acts times ``alpha / rank``.
        base_model: Folder or Hub id of the model that the adapter belongs to.
        record: What the adapter was made from.
    """
    from peft import LoraConfig

    with _appearing(folder, record) as unfinished:
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=sorted({layer.rpartition(".")[2] for layer in weights}),
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_model,
            inference_mode=True,
        ).save_pretrained(str(unfinished))
        halves = {
            f"{PEFT_PREFIX}{layer}{half}": tensor.contiguous()
            for layer, pair in weights.items()
            for half, tensor in zip((DOWN, UP), pair, strict=True)
        }
        save_file(halves, unfinished / WEIGHTS, metadata={"format": "pt"})


@contextmanager
def _appearing(folder: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder that takes the place of ``folder``, with a record, unless an error comes."""
    with whole_folder(folder, replaces=True) as unfinished:
        yield unfinished
        (unfinished / MADE_FROM).write_text(json.dumps(record, indent=1, default=str))
