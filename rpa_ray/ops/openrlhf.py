"""OpenRLHF's losses and KL controllers, imported on first use and nothing around them."""

import os
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


@cache
def openrlhf_losses() -> ModuleType:
    """Return ``openrlhf.models.loss``; the first call also imports DeepSpeed (4 s)."""
    return _import_alone("openrlhf.models", "loss")


@cache
def openrlhf_kl_controllers() -> ModuleType:
    """Return ``openrlhf.trainer.ppo_utils.kl_controller``."""
    return _import_alone("openrlhf.trainer.ppo_utils", "kl_controller")


def _import_alone(package: str, module: str) -> ModuleType:
    """Import one module of a package without running the package's own ``__init__``.

    Those of OpenRLHF import its CUDA engine, which needs flash-attn. A placeholder ``flash_attn``
    is the other way, but transformers looks for that name and would believe it installed. So an
    empty stand-in for the package is there during the import, and is removed again: whoever imports
    the real package later gets the real one.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it warns where it has to find out
    if package in sys.modules:
        return import_module(f"{package}.{module}")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    stand_in = ModuleType(package)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = stand_in
    try:
        return import_module(f"{package}.{module}")
    finally:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]
