"""Names of cells and keys of models, as committed tables and caches know them.

They may change only where RECIPE_VERSION rises or a setting is added, and then CHANGELOG.md says
so. `python tests/unit/test_golden_keys.py` writes them anew.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from rpa_ray.config import ConfigError
from rpa_ray.plan import load_config, with_native_dtype
from rpa_ray.plan.cells import cell_name
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.world.datasets import build_world

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
GOLDEN = Path(__file__).parent / "golden_keys.json"
WITH_MODELS = ("quickstart.yaml", "paper/table3.yaml")
DTYPES = ("bfloat16", "float32")


def names_of_cells(dtype: str) -> dict[str, list[str]]:
    """Return the names of all cells of every file that is an experiment by itself."""
    names = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        try:
            loaded = with_native_dtype(load_config(path), dtype)  # type: ignore[arg-type]
        except ConfigError:  # a defence that needs an attack beside it
            continue
        file = path.relative_to(CONFIGS).as_posix()
        names[file] = [cell_name(cell) for cell in loaded.campaign.cells]
    return names


def keys_of_models(dtype: str, cache: Path) -> dict[str, list[str]]:
    """Return the keys of all models of the quickstart and of table 3, each once, sorted."""
    keys = {}
    for file in WITH_MODELS:
        loaded = with_native_dtype(load_config(CONFIGS / file), dtype)  # type: ignore[arg-type]
        recipes = [
            r for cell in loaded.campaign.cells for r in CellInputs(cell, cache).models.recipes()
        ]
        keys[file] = sorted({f"{recipe.id}-{recipe.key()}" for recipe in recipes})
    return keys


def golden(kind: str, dtype: str) -> dict[str, list[str]]:
    known: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))[kind][dtype]
    return known


@pytest.mark.parametrize("dtype", DTYPES)
def test_cells_are_called_what_they_were(dtype: str) -> None:
    found, known = names_of_cells(dtype), golden("cells", dtype)
    assert {file: found.get(file) for file in known} == known


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_have_the_keys_they_had(dtype: str, world_cache: Path) -> None:
    assert keys_of_models(dtype, world_cache) == golden("models", dtype)


def write(dtypes: Iterable[str] = DTYPES) -> None:
    with tempfile.TemporaryDirectory() as folder:
        build_world(0, Path(folder))
        found = {
            "cells": {dtype: names_of_cells(dtype) for dtype in dtypes},
            "models": {dtype: keys_of_models(dtype, Path(folder)) for dtype in dtypes},
        }
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
