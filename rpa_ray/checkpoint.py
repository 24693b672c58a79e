"""Models on disk: Hugging Face folders that appear whole or not at all, and their fingerprints."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and bytes, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(unfinished, state_dict=dict(weights))
        tokenizer.save_pretrained(unfinished)
        (unfinished / "made_from.json").write_text(json.dumps(record, indent=1, default=str))
        unfinished.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
