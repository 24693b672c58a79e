"""Low-rank adapters beside finished models: on disk as peft keeps them, and what they change."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PEFT_PREFIX = "base_model.model."
"""What peft puts before the name of a module in its files."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankChange:
    """What an adapter adds to one weight: ``scale * up @ down``."""

    down: Tensor
    """[rank, in]"""
    up: Tensor
    """[out, rank]"""
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """Return the weight with the change in it; sums in fp32, in the weight's own type."""
        up, down = (part.to(weight.device, torch.float32) for part in (self.up, self.down))
        return (weight.float() + self.scale * (up @ down)).to(weight.dtype)

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """Return what the change adds to a layer's outputs [..., out] for inputs [..., in]."""
        # No torch.nn.functional.linear: DeepSpeed has its own for weights that it partitions.
        return self.scale * (inputs @ self.down.T @ self.up.T)

    def like(self, inputs: Tensor) -> "LowRankChange":
        """Return the change where the inputs are and in their type, itself if it is."""
        if (self.down.device, self.down.dtype) == (inputs.device, inputs.dtype):
            return self
        return LowRankChange(down=self.down.to(inputs), up=self.up.to(inputs), scale=self.scale)


def read_adapter(folder: Path, *, strength: float) -> dict[str, LowRankChange]:
    """Return the adapter of a peft folder by the name of the layer, times ``strength``."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = strength * settings["lora_alpha"] / settings["r"]
    tensors = load_file(folder / WEIGHTS)
    layers = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    return {
        layer.removeprefix(PEFT_PREFIX): LowRankChange(
            down=tensors[layer + DOWN], up=tensors[layer + UP], scale=scale
        )
        for layer in layers
    }


def with_changes(changes: Mapping[str, LowRankChange], name: str, weight: Tensor) -> Tensor:
    """Return the weight of this checkpoint name with its layer's change, or as it is."""
    change = changes.get(name.removesuffix(".weight"))
    return weight if change is None else change.added_to(weight)
