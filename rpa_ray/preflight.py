"""Everything that can be refused before Ray or a model is started; cheap checks come first."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rpa_ray.attacks import ATTACKS
from rpa_ray.cell_models import MAX_MODEL_LEN, MODEL_SEED, cell_models
from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.data.context import check_context, context_tokens, prompt_lengths
from rpa_ray.data.errors import DataError
from rpa_ray.data.template import Template
from rpa_ray.datasets import harmless_test_prompts, preference_data, restricted_test_prompts
from rpa_ray.defences import DEFENCES
from rpa_ray.hub import require_hub_model
from rpa_ray.placement import check_placement
from rpa_ray.plugin import Need
from rpa_ray.ray_address import cluster_to_join, require_ray_cluster
from rpa_ray.recipe import in_order
from rpa_ray.resume import CHECKPOINTS, check_fits, latest_checkpoint
from rpa_ray.world.datasets import CONTEXT_TOKENS, build_world, world_folder

MIN_FREE_BYTES = 500 * 2**20
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
EMBEDDED_MODELS = ("chat", "base")
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def check_all(cells: Sequence[tuple[str, ExperimentSettings]], folders: dict[str, Path]) -> None:
    """Refuse what cannot run; builds the embedded worlds (seconds) that are not there yet.

    Args:
        cells: Every cell with the prefix of its keys in errors.
        folders: What will be written to, by the option that names it: ``--output`` and
            ``RPA_RAY_CACHE``.

    Raises:
        ConfigError: sizes, models, folders or the machine do not fit the settings, or the cluster
            to join does not answer.
        DataError: data cannot be read, are too few, or do not fit the context of the model.
    """
    for where, settings in cells:
        check_settings(settings, where)
        check_placement(settings, where)
    for option, folder in folders.items():
        check_output(folder, option)
    for cluster in {cluster_to_join(settings.cluster.address) for _, settings in cells}:
        if cluster is not None:
            require_ray_cluster(cluster.value, cluster.key)
    for where, settings in cells:
        try:
            check_data(settings, folders["RPA_RAY_CACHE"])
        except DataError as error:
            raise DataError(f"{where}{error}") from error
        except ConfigError as error:
            raise ConfigError(
                f"{where}{error.key}", error.rule, error.value, error.remedy
            ) from error


def check_output(folder: Path, option: str = "--output") -> None:
    """Refuse a folder that cannot be written or has no room; makes no folder itself.

    Raises:
        ConfigError: it or the folder it would be made in cannot be written or is nearly full.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise ConfigError(
            option,
            "be a folder that can be written",
            str(folder),
            f"{there}: {error.strerror}. Name another folder.",
        ) from None
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            option,
            f"lie on a disk with {MIN_FREE_BYTES >> 20} MiB free",
            f"{free >> 20} MiB at {there}",
            "Free space or name another folder.",
        )


def check_checkpoints(run_folder: Path, settings: ExperimentSettings) -> None:
    """Refuse to go on with an interrupted run on other ranks than those that began it.

    Raises:
        ConfigError: Number of ranks or ZeRO stage differ from those of the run's checkpoint.
    """
    checkpoint = latest_checkpoint(run_folder / CHECKPOINTS)
    if checkpoint is not None:
        cluster = settings.cluster
        # The user's own DeepSpeed file may name another stage: the ranks compare it then.
        stage = cluster.zero_stage if cluster.deepspeed is None else None
        check_fits(checkpoint, num_ranks=cluster.num_ranks, zero_stage=stage)


def check_settings(settings: ExperimentSettings, where: str = "") -> None:
    """Refuse settings that contradict each other, and model files that are not there.

    Raises:
        ConfigError: with the key that has to change.
    """
    for check in (_check_data_source, _check_sizes, _check_deepspeed, _check_models):
        check(settings, where)


def check_data(settings: ExperimentSettings, cache: Path) -> None:
    """Refuse too few rows, and prompts too long for the model; keys have no cell prefix.

    Raises:
        ConfigError: a batch of a model that has to be made cannot be cut over the ranks.
        DataError: the data cannot be read, are too few or too long.
    """
    if settings.data.world == "embedded":
        build_world(settings.data.world_seed, cache)
    _check_rows(settings, cache)
    _check_context(settings, cache)
    num_ranks = settings.cluster.num_ranks
    for recipe in in_order(cell_models(settings, cache).recipes(), cache):
        if recipe.job.batch_size % num_ranks:
            raise ConfigError(
                "cluster.num_ranks",
                f"divide {recipe.job.batch_size}, the batch of the model {recipe.id!r} to be made",
                num_ranks,
                "Choose another number of ranks.",
            )


def _check_data_source(settings: ExperimentSettings, where: str) -> None:
    data = settings.data
    if data.world == "real" and data.path is None:
        raise ConfigError(
            f"{where}data.path", "be given where data.world is real", None, "Name a folder or file."
        )
    if data.world == "embedded" and data.path is not None:
        raise ConfigError(
            f"{where}data.path",
            "be left out where data.world is embedded",
            data.path,
            "Set data.world: real to read it.",
        )


def _check_sizes(settings: ExperimentSettings, where: str) -> None:
    cluster, data, judge = settings.cluster, settings.data, settings.evaluation.judge
    if cluster.zero_stage == 0 and settings.model.dtype != "float32":
        raise ConfigError(
            f"{where}cluster.zero_stage",
            "be 1, 2 or 3 with bfloat16 weights",
            0,
            "DeepSpeed keeps no fp32 masters at stage 0; set model.dtype: float32 or stage 1.",
        )
    for part in ("attack", "defence"):
        batch_size = getattr(getattr(settings, part), "batch_size", cluster.num_ranks)
        _require_multiple(f"{where}{part}.batch_size", batch_size, cluster.num_ranks, "num_ranks")
    if settings.attack.name != "none":
        batch_size = getattr(settings.attack, "batch_size", 1)
        key = f"{where}data.num_samples"
        _require_multiple(key, data.num_samples, batch_size, "attack.batch_size")
    for key, num, batch_size in (
        ("data.reward_model.num_pairs", data.reward_model.num_pairs, data.reward_model.batch_size),
        ("evaluation.judge.num_rows", judge.num_rows, judge.batch_size),
    ):
        if num < batch_size:
            raise ConfigError(f"{where}{key}", f"fill one batch of {batch_size}", num, "Raise it.")


def _require_multiple(key: str, number: int, divisor: int, name: str) -> None:
    if number % divisor:
        raise ConfigError(
            key,
            f"be a multiple of {name} ({divisor})",
            number,
            f"Take {max(1, number // divisor) * divisor}, or change {name}.",
        )


def _check_deepspeed(settings: ExperimentSettings, where: str) -> None:
    path = settings.cluster.deepspeed
    if path is not None:
        _read_json_object(path, f"{where}cluster.deepspeed", "name a file with a JSON object")


def _check_models(settings: ExperimentSettings, where: str) -> None:
    evaluation = settings.evaluation
    if evaluation.judge.trained and evaluation.judge.path is None:
        raise ConfigError(
            f"{where}evaluation.judge.path",
            "be given where evaluation.judge.trained is true",
            None,
            "Name the finished classifier.",
        )
    if settings.model.path not in EMBEDDED_MODELS:
        _check_model(settings.model.path, f"{where}model.path")
    for key, path in (
        ("data.reward_model.path", settings.data.reward_model.path),
        ("evaluation.judge.path", evaluation.judge.path),
        ("evaluation.perplexity_model", evaluation.perplexity_model),
        ("evaluation.helpfulness_model", evaluation.helpfulness_model),
    ):
        if path is not None:
            _check_model(path, f"{where}{key}")


def _check_model(path: str, key: str) -> None:
    """Refuse a path that is neither a complete Hugging Face folder nor a model of the Hub."""
    folder = Path(path)
    if folder.exists():
        rule = "be a model folder with a config.json that can be read"
        _read_json_object(folder / "config.json", key, rule)
        for what, patterns in (("weights", WEIGHT_FILES), ("a tokenizer", TOKENIZER_FILES)):
            if not any(file for pattern in patterns for file in folder.glob(pattern)):
                raise ConfigError(
                    key, f"hold {what} ({', '.join(patterns)})", path, "Save the model again."
                )
    elif HUB_ID.fullmatch(path) and not path.startswith("."):
        require_hub_model(path, key)
    else:
        embedded = "chat, base, " if key.endswith("model.path") else ""
        raise ConfigError(
            key,
            f"be {embedded}a Hub id (owner/name), or a folder with a config.json",
            path,
            "There is no such folder: check the path.",
        )


def _read_json_object(path: Path, key: str, rule: str) -> None:
    try:
        ok = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        problem = "it holds something else"
    except OSError as error:
        ok, problem = False, f"{error.strerror}"
    except ValueError as error:  # broken JSON, or not UTF-8
        ok, problem = False, f"{error}"
    if not ok:
        raise ConfigError(key, rule, str(path), f"{problem}: check the file.")


def _check_rows(settings: ExperimentSettings, cache: Path) -> None:
    data = preference_data(settings.data, cache)
    judge, reward_model = settings.evaluation.judge, settings.data.reward_model
    attack = ATTACKS[settings.attack.name]
    if settings.attack.name != "none":
        num, seed = settings.data.num_samples, settings.seed
        data.draw("attack", num, seed=seed, key="data.num_samples")
    if Need.REWARDS in attack.requires:
        key = "data.reward_model.num_pairs"
        data.draw("reward_model", reward_model.num_pairs, seed=MODEL_SEED, key=key)
    if not judge.trained:
        num_answers = 2 * len(data.roles["classifier"])
        _require_rows("evaluation.judge.num_rows", judge.num_rows, num_answers, "classifier")
    if Need.SAFE_BATCH in attack.requires | DEFENCES[settings.defence.name].requires:
        batch_size = getattr(settings.defence, "batch_size", 1)
        _require_rows("defence.batch_size", batch_size, len(data.roles["defence"]), "defence")


def _require_rows(key: str, num: int, num_rows: int, role: str) -> None:
    if num > num_rows:
        raise DataError.broken_rule(
            key,
            f"be at most {num_rows} (the rows of role {role!r})",
            num,
            "Lower it or bring a larger data set.",
        )


def _check_context(settings: ExperimentSettings, cache: Path) -> None:
    num = settings.evaluation.num_prompts
    prompts = restricted_test_prompts(settings.data, cache, num)
    prompts += harmless_test_prompts(settings.data, cache, num)
    path = Path(settings.model.path)
    if settings.model.path in EMBEDDED_MODELS:
        tokenizer = world_folder(settings.data.world_seed, cache) / "tokenizer"
        context = CONTEXT_TOKENS
    elif (path / "tokenizer.json").is_file():
        tokenizer, context = path, context_tokens(path)
    else:
        return  # a Hub model is checked once it is there
    template = Template(settings.data.template)

    def fits(texts: Sequence[str], max_new_tokens: int, key: str) -> None:
        lengths = prompt_lengths(tokenizer, template, texts)
        check_context(lengths, max_new_tokens, min(context, MAX_MODEL_LEN), key)

    fits(prompts, settings.evaluation.max_new_tokens, "evaluation.max_new_tokens")
    max_new_tokens = getattr(settings.attack, "max_new_tokens", None)
    if max_new_tokens is not None:
        pairs = preference_data(settings.data, cache).draw(
            "attack", settings.data.num_samples, seed=settings.seed, key="data.num_samples"
        )
        fits([pair.prompt for pair in pairs], max_new_tokens, "attack.max_new_tokens")
