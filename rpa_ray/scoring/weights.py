"""What is asked of the weights of a model: their type, and whether all were there."""

from collections.abc import Collection
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from rpa_ray.scoring.size import bytes_a_weight


def require_every_weight(path: Path | str, missing: Collection[str]) -> None:
    """Refuse a model that transformers found weights missing from.

    Args:
        path: Its folder.
        missing: Names of weights that the model should have read from it.

    Raises:
        ValueError: There is one.
    """
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{path} must hold every weight of its model, got none for {shown} "
            f"({len(missing)} in all). They would be drawn at random: save the model again."
        )


def scoring_dtype(path: Path, device: torch.device) -> torch.dtype:
    """Return the type in which the scoring model of a folder is held on a device."""
    num_parameters = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
            num_parameters += sum(prod(weights.get_slice(name).get_shape()) for name in names)
    num_bytes = bytes_a_weight(num_parameters, on_gpu=device.type != "cpu")
    return torch.float32 if num_bytes == torch.float32.itemsize else torch.bfloat16
