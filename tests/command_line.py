"""The command line as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from rpa_ray.plan.load import parse_experiment
from rpa_ray.recipes.cell_models import CellInputs

RPA_RAY = str(Path(sys.executable).with_name("rpa-ray"))


def rpa_ray(*arguments: str, cache: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``rpa-ray`` in a folder with the models of a cache."""
    return subprocess.run(
        [RPA_RAY, *arguments],
        cwd=cwd,
        env={**os.environ, "RPA_RAY_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


def run_campaign(config: dict[str, Any], name: str, *, cache: Path, folder: Path) -> Path:
    """Write a campaign's config into a folder, run it there and return where its results are."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"kind": "campaign", **config}))
    result = rpa_ray("campaign", f"{name}.yaml", cache=cache, cwd=folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "runs" / name


def unsafe_models(campaign: Path, cache: Path) -> set[Path]:
    """Return where models of a campaign's cells that learn what is unsafe lie while they do."""
    found: set[Path] = set()
    for path in campaign.glob("*/config.yaml"):
        settings = parse_experiment(yaml.safe_load(path.read_text()))
        recipes = CellInputs(settings, cache).models.recipes()
        found |= {recipe.folder(cache) for recipe in recipes if recipe.is_unsafe}
    return found
