"""Make the models that come with the package anew: rpa_ray/world/shipped_models/.

    .venv/bin/python launch/ship_models.py            about ten minutes on two CPU cores

Only where a recipe of the default world has changed: models whose recipe has not are left as they
are. Commit what it writes. ``bash launch/test.sh --slow`` makes them anew and compares.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.world.datasets import build_world
from rpa_ray.world.shipped import INDEX, SHIPPED

ROOT = Path(__file__).parents[1]
DATA_SETS = ("beavertails", "safe_rlhf")
VERSIONS = ("torch", "transformers", "deepspeed", "tokenizers")
MAX_BYTES = 24 * 2**20
# Of all attacks the one that asks for every model and trains nothing.
CELL: dict[str, Any] = {"attack": {"name": "best_of_n", "pool_size": 1, "sizes": [1]}}


def main() -> None:
    """Make what is missing in a fresh cache, then put it in the place of what was shipped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, help="a cache that is kept; default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = (options.cache or Path(folder) / "cache").absolute()
        make(cache, Path(folder))
        ship(cache)


def recipes(cache: Path) -> dict[str, ModelRecipe]:
    """Return what is shipped, by the name of its folder."""
    found: dict[str, ModelRecipe] = {}
    for name in DATA_SETS:
        settings = parse_tree({**CELL, "data": {"name": name}, "model": {"dtype": "float32"}})
        waiting = list(CellInputs(settings, cache).models.recipes())
        while waiting:
            recipe = waiting.pop()
            found[recipe.folder(cache).name] = recipe
            waiting += recipe.made_from
    return dict(sorted(found.items()))


def make(cache: Path, folder: Path) -> None:
    """Run cells that need every one of the models, on as few prompts as can be."""
    config = {
        "kind": "campaign",
        "include": [str(ROOT / "configs" / "cluster" / "cpu.yaml")],
        "model": {"dtype": "float32"},
        "keep_attacked_weights": True,
        "evaluation": {"num_prompts": 2, "num_samples": 1, "num_resamples": 100, "num_looks": 0},
        "cells": [{**CELL, "data": {"name": name}} for name in DATA_SETS],
    }
    (folder / "models.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("rpa-ray")), "campaign", "models.yaml"]
    environment = {**os.environ, "RPA_RAY_CACHE": str(cache)}
    subprocess.run(command, cwd=folder, env=environment, check=True)  # noqa: S603 - our own words


def ship(cache: Path) -> None:
    """Copy the models without their tokenizers, which are their world's, and write the index."""
    world = build_world(0, cache)
    kept = recipes(cache)
    for old in SHIPPED.glob("*-*"):
        if old.name not in kept:
            shutil.rmtree(old)
    models = {}
    for name in kept:
        if not (SHIPPED / name).is_dir():
            copy(cache / name, SHIPPED / name)
        files = sorted(path for path in (SHIPPED / name).iterdir())
        models[name] = {file.name: sha256(file) for file in files}
    index = {
        "world": world.name,
        "tokenizer_sha256": sha256(world / "tokenizer" / "tokenizer.json"),
        "models": models,
    }
    (SHIPPED / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file())
    assert size <= MAX_BYTES, size
    print(f"{len(models)} models, {size / 2**20:.1f} MiB, in {SHIPPED}")


def copy(made: Path, folder: Path) -> None:
    """Copy a model of a cache, its tokenizer and the paths of its record left out."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(made / name, folder / name)
    record = without_paths(json.loads((made / "made_from.json").read_text(encoding="utf-8")))
    record["versions"] = {name: version(name) for name in VERSIONS}
    (folder / "made_from.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def without_paths(value: Any) -> Any:
    """Return a record without the place of the tokenizer, which its key names."""
    if not isinstance(value, dict):
        return value
    return {key: without_paths(inner) for key, inner in value.items() if key != "tokenizer"}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
