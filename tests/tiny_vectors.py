"""A security vector of the tiny policy, in a folder as a recipe leaves it."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fakes import tiny_llama
from torch import Tensor, nn

from rpa_ray.defences.online.security_vectors import SecurityVectors
from rpa_ray.learner.model_folder import save_adapter
from rpa_ray.plugin import Need

RANK = 4
ALPHA = 8


def write_vector(
    folder: Path, *, dtype: torch.dtype = torch.float32, layers: nn.Module | None = None
) -> dict[str, Tensor]:
    """Write a random adapter of the tiny Llama (or of ``layers``); return its whole changes."""
    generator = torch.Generator().manual_seed(5)
    weights, changes = {}, {}
    for name, module in (layers or tiny_llama()).named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            down = torch.randn(RANK, module.in_features, generator=generator).to(dtype)
            up = 0.1 * torch.randn(module.out_features, RANK, generator=generator)
            weights[name] = (down, up.to(dtype))
            changes[f"{name}.weight"] = ALPHA / RANK * (weights[name][1].float() @ down.float())
    save_adapter(folder, weights=weights, rank=RANK, alpha=ALPHA, base_model="tiny", record={})
    return changes


def folders_of(vector: Path) -> dict[Need, str]:
    """Return what a defence is told of a vector that is made."""
    return {Need.SECURITY_VECTOR: str(vector)}


class TinySecurityVectors(SecurityVectors):
    """Security Vectors that bring the vector of the tiny policy along."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(SecurityVectors.Config(**settings))

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        with TemporaryDirectory() as folder:
            write_vector(Path(folder, "vector"))
            super().attach(model, folders_of(Path(folder, "vector")))
