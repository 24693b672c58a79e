"""SHA-256 of tensors and checkpoints: what was meant to be served, to hold what is against it."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 (hex) of a tensor's bytes in row-major order."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def checkpoint_digests(folder: Path, dtype: torch.dtype) -> dict[str, str]:
    """Return the digest of every tensor of a safetensors checkpoint, cast to ``dtype``.

    Raises:
        ValueError: If the folder holds no safetensors file.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"folder must hold a safetensors checkpoint, got {folder}. Save the model there first."
        )
    digests: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (the handle is no mapping)
                digests[name] = tensor_digest(tensors.get_tensor(name).to(dtype))
    return digests
