"""Everything that can be refused before Ray or a model is started."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.data.context import check_context, context_tokens, prompt_lengths
from rpa_ray.data.template import Template
from rpa_ray.datasets import harmless_test_prompts, preference_data, restricted_test_prompts
from rpa_ray.world.datasets import CONTEXT_TOKENS, build_world, world_folder

MIN_FREE_BYTES = 500 * 2**20
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def check_output(folder: Path, key: str = "--output") -> None:
    """Refuse a folder that cannot be written or has no room.

    Raises:
        ConfigError: it cannot be made, cannot be written, or its disk is nearly full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise ConfigError(
            key, "be a folder that can be written", str(folder), f"{error.strerror}. Name another."
        ) from None
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            key,
            f"lie on a disk with {MIN_FREE_BYTES >> 20} MiB free",
            f"{free >> 20} MiB at {folder}",
            "Free space or name another folder.",
        )


def check_experiment(settings: ExperimentSettings, cache: Path, where: str = "") -> None:
    """Refuse a cell that cannot run; builds the embedded world's data (seconds) where needed.

    Raises:
        ConfigError: sizes, model or cluster settings do not fit together.
        DataError: the data cannot be read or are too few.
    """
    _check_sizes(settings, where)
    _check_model(settings, where)
    if settings.data.world == "embedded":
        build_world(settings.data.world_seed, cache)
    elif settings.data.path is None:
        raise ConfigError(
            f"{where}data.path", "be given where data.world is real", None, "Name a folder or file."
        )
    if settings.attack.name != "none":
        data = preference_data(settings.data, cache)
        data.draw(
            "attack", settings.data.num_samples, seed=settings.seed, key=f"{where}data.num_samples"
        )
    _check_context(settings, cache, where)


def _check_sizes(settings: ExperimentSettings, where: str) -> None:
    cluster = settings.cluster
    if cluster.zero_stage == 0 and settings.model.dtype != "float32":
        raise ConfigError(
            f"{where}cluster.zero_stage",
            "be 1, 2 or 3 with bfloat16 weights",
            0,
            "DeepSpeed keeps no fp32 masters at stage 0; set model.dtype: float32 or stage 1.",
        )
    for part in ("attack", "defence"):
        batch_size = getattr(getattr(settings, part), "batch_size", cluster.num_ranks)
        if batch_size % cluster.num_ranks:
            raise ConfigError(
                f"{where}{part}.batch_size",
                f"be a multiple of cluster.num_ranks ({cluster.num_ranks})",
                batch_size,
                "Change one of the two.",
            )
    batch_size = getattr(settings.attack, "batch_size", 1)
    if settings.attack.name != "none" and settings.data.num_samples % batch_size:
        raise ConfigError(
            f"{where}data.num_samples",
            f"be a multiple of attack.batch_size ({batch_size})",
            settings.data.num_samples,
            "Every sample is used exactly once.",
        )


def _check_model(settings: ExperimentSettings, where: str) -> None:
    path = settings.model.path
    if path in ("chat", "base"):
        return
    if (Path(path) / "config.json").is_file():
        return
    if not Path(path).exists() and HUB_ID.fullmatch(path) and not path.startswith("."):
        return
    raise ConfigError(
        f"{where}model.path",
        "be chat, base, a Hub id (owner/name), or a folder with a config.json",
        path,
        "Check the path.",
    )


def _check_context(settings: ExperimentSettings, cache: Path, where: str) -> None:
    path = Path(settings.model.path)
    if settings.model.path in ("chat", "base"):
        tokenizer = world_folder(settings.data.world_seed, cache) / "tokenizer"
        context = CONTEXT_TOKENS
    elif (path / "tokenizer.json").is_file():
        tokenizer, context = path, context_tokens(path)
    else:
        return  # a Hub model is checked once it is there
    num = settings.evaluation.num_prompts
    prompts = restricted_test_prompts(settings.data, cache, num)
    prompts += harmless_test_prompts(settings.data, cache, num)
    template = Template(settings.data.template)
    check_context(
        prompt_lengths(tokenizer, template, prompts),
        settings.evaluation.max_new_tokens,
        context,
        f"{where}evaluation.max_new_tokens",
    )
    max_new_tokens = getattr(settings.attack, "max_new_tokens", None)
    if max_new_tokens is not None:
        pairs = preference_data(settings.data, cache).draw(
            "attack", settings.data.num_samples, seed=settings.seed, key="data.num_samples"
        )
        lengths = prompt_lengths(tokenizer, template, [pair.prompt for pair in pairs])
        check_context(lengths, max_new_tokens, context, f"{where}attack.max_new_tokens")


def check_cpus(settings: ExperimentSettings, num_cpus: float) -> None:
    """Refuse a placement that asks for more CPUs than there are: Ray would wait for ever.

    Raises:
        ConfigError: with the sum that was asked.
    """
    asked = cpus_asked(settings)
    if asked > num_cpus:
        raise ConfigError(
            "cluster",
            f"ask for at most the {num_cpus:g} CPUs there are",
            f"{asked:g}",
            "Lower cluster.num_ranks, cpus_per_rank, num_rollout_workers or num_scorer_workers.",
        )


def cpus_asked(settings: ExperimentSettings) -> float:
    """Return the CPUs that ranks, rollout and scoring workers reserve together."""
    cluster = settings.cluster
    return (
        cluster.num_ranks * cluster.cpus_per_rank
        + cluster.num_rollout_workers * cluster.cpus_per_rollout_worker
        + cluster.num_scorer_workers * cluster.cpus_per_scorer_worker
    )


def local_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
