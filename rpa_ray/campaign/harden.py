"""Hardening a model: two cells without an attack, and the checkpoint that is released of them.

the untouched model, the hardened one -> measured as any cell -> released/ with card and manifest
"""

import hashlib
import inspect
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rpa_ray.campaign.summary import record
from rpa_ray.config import ConfigError, ExperimentSettings, with_local_paths
from rpa_ray.defences import OFFLINE_DEFENCES, offline_defences, online_defences
from rpa_ray.plan import LoadedConfig
from rpa_ray.plan.cells import PlannedCell
from rpa_ray.plan.checks.machine import check_output
from rpa_ray.plan.memory import weights_gib
from rpa_ray.plan.methods import defence_config, plugin_config
from rpa_ray.plan.model_shapes import shape_of
from rpa_ray.plan.plan import Plan, pinned_cell
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.content import content_key
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.report.card import model_card
from rpa_ray.run_folder.files import read_json, whole_folder, write_json, write_text
from rpa_ray.run_folder.names import HARDENED, MADE_FROM, MANIFEST, MODEL_CARD, RELEASED

_ROLE = re.compile(r":\w+:(?=`)")
"""Of a reference in a docstring, as in :class:`Name`."""


def hardening_of(loaded: LoadedConfig) -> tuple[LoadedConfig, str]:
    """Return a campaign of the untouched and the hardened model of a run, neither attacked.

    The second is in a line what hardens, and what of the config is left out.

    Raises:
        ConfigError: the config is that of several cells, or has no offline defence.
    """
    if loaded.kind != "run":
        remedy = "Write a file of one run with the defence that hardens."
        raise ConfigError("kind", "be run where a model is hardened", loaded.kind, remedy)
    (settings,) = loaded.campaign.cells
    offline = [defence.config for defence in offline_defences(settings.defence)]
    if not offline:
        known = sorted(OFFLINE_DEFENCES)
        raise ConfigError(
            "defence",
            f"hold an offline defence ({', '.join(known)})",
            settings.defence.name,
            f"Add `--set defence={known[0]}`.",
        )
    cells = [_unattacked(settings, part) for part in ("none", offline)]
    name = f"harden-{loaded.name}"
    campaign = loaded.campaign.model_copy(update={"name": name, "cells": tuple(cells)})
    methods = " and ".join(config.name for config in offline)
    unused = [f"the attack {settings.attack.name}"] * (settings.attack.name != "none")
    unused += [d.config.name for d in online_defences(settings.defence) if d.config.name != "none"]
    line = f"hardened by {methods}" + f"; left out: {', '.join(unused)}" * bool(unused)
    return replace(loaded, kind="campaign", name=name, campaign=campaign, wheres=("", "")), line


def _unattacked(settings: ExperimentSettings, defence: Any) -> ExperimentSettings:
    parts = {"attack": plugin_config("attack", "none", ""), "defence": defence_config(defence, "")}
    return settings.model_copy(update=parts)


def check_release(plan: Plan) -> None:
    """Refuse what could not be released once its cells are run, before anything is started.

    Raises:
        ConfigError: another checkpoint was released there, the model was measured and is gone, or
            the disk has no room for a copy of it.
    """
    _, hardened = plan.cells
    if _is_released(plan):
        return
    recipe = _recipe_of(hardened, plan)
    if hardened.done and not recipe.is_made(plan.cache):
        raise ConfigError(
            "RPA_RAY_CACHE",
            f"hold {recipe.folder(plan.cache).name}, the model that {hardened.folder} measured",
            str(plan.cache),
            "Delete that folder of the run: the model is made and measured again.",
        )
    shape = shape_of(recipe)
    if shape is not None:
        check_output(plan.output, gib=weights_gib(shape, recipe.job.dtype))


def release(plan: Plan) -> Path:
    """Return the folder of the released checkpoint; one that is there already is kept.

    It is the model of the cache with a model card and a manifest, whole or absent.
    """
    folder = plan.output / RELEASED
    if not _is_released(plan):
        _, hardened = plan.cells
        source = _recipe_of(hardened, plan).folder(plan.cache)
        with whole_folder(folder) as unfinished:
            left_out = shutil.ignore_patterns(MADE_FROM)
            shutil.copytree(source, unfinished, ignore=left_out, dirs_exist_ok=True)
            manifest = _manifest(plan, unfinished)
            write_json(unfinished / HARDENED, manifest)
            write_text(unfinished / MODEL_CARD, model_card(manifest))
    return folder


def _is_released(plan: Plan) -> bool:
    """Return whether the checkpoint is there with the numbers of these cells; refuse another."""
    folder = plan.output / RELEASED
    if not folder.exists():
        return False
    found = read_json(folder / HARDENED, dict) or {}
    identity = _identity(plan)
    if any(found.get(name) != value for name, value in identity.items()):
        raise ConfigError(
            "--output",
            f"hold in {RELEASED}/ nothing but {identity['key']}, measured by {identity['run']}",
            f"{found.get('key')}, measured by {found.get('run')}, in {folder}",
            "Move that folder away, or name another with --output.",
        )
    return True


def _identity(plan: Plan) -> dict[str, Any]:
    """Return what tells a released checkpoint from others: its weights, and what measured it."""
    _, hardened = plan.cells
    return {"key": _recipe_of(hardened, plan).folder(plan.cache).name, "run": hardened.name}


def _recipe_of(cell: PlannedCell, plan: Plan) -> ModelRecipe:
    recipe = plan.inputs.of(pinned_cell(cell).settings).models.policy
    assert isinstance(recipe, ModelRecipe)
    return recipe


def _manifest(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return all that is known of a checkpoint: how it was made, from what, and its numbers.

    Of local paths it has the last name alone.

    Args:
        plan: Of its two cells, which have their results.
        folder: Where its weights lie.
    """
    untouched, hardened = plan.cells
    settings = with_local_paths(hardened.settings, lambda path: path.name)
    run = read_json(hardened.folder / MANIFEST, dict) or {}
    recipe = _recipe_of(hardened, plan)
    # Found anew: refusals that the plan had yet to make are counted as they are by now.
    data = CellInputs(pinned_cell(hardened).settings, plan.cache).data.safety.preferences
    origin = replace(data.provenance, source=_without_folders(data.provenance.source))
    model = {"model": settings.model.path}
    return {
        **_identity(plan),
        **model,
        "methods": [_method(step) for step in recipe.hardenings],
        "rows": {"key": data.key, **asdict(origin), **asdict(data.manifest["defence"])},
        "dtype": recipe.job.dtype,
        **{name: run.get(name, {}) for name in ("versions", "git_commit", "determinism")},
        "config": settings.model_dump(mode="json", exclude={"cluster"}),
        "weights": {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))},
        "records": {"before": record(untouched) | model, "after": record(hardened) | model},
    }


def _method(step: ModelRecipe) -> dict[str, Any]:
    """Return what one offline defence did, in the words of its class, and with which settings."""
    assert step.defence is not None
    start = step.start
    return {
        "description": _ROLE.sub("", inspect.getdoc(OFFLINE_DEFENCES[step.defence["name"]]) or ""),
        "config": step.defence,
        "seed": step.seed,
        "start": f"{start.id}-{start.key()}"
        if isinstance(start, ModelRecipe)
        else f"{_without_folders(str(start))} ({content_key(str(start))})",
        "key": f"{step.id}-{step.key()}",
    }


def _without_folders(place: str) -> str:
    """Return the last name of a local path, any other place as it is."""
    return Path(place).name if os.path.exists(place) else place


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
