"""Everything that can be refused before Ray or a model is started; cheap checks come first."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rpa_ray.cluster.address import cluster_to_join, require_ray_cluster
from rpa_ray.cluster.resources import check_placement
from rpa_ray.config import (
    EMBEDDED_MODELS,
    ConfigError,
    DataSettings,
    ExperimentSettings,
    RolloutConfig,
)
from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import SafePair
from rpa_ray.data.source import check_source
from rpa_ray.data.split import ROLE_SHARES
from rpa_ray.data.template import Template
from rpa_ray.defences import defence_of
from rpa_ray.learner.checkpoints import CHECKPOINTS, check_fits, latest_checkpoint
from rpa_ray.plan.checks.context import check_context, context_tokens, prompt_lengths
from rpa_ray.plan.checks.models import check_models, require_json_object
from rpa_ray.plan.checks.vocabulary import check_same_tokens
from rpa_ray.plugin import DEFENCE_BATCHES, Need
from rpa_ray.recipes.cell_data import (
    PreferenceData,
    harmless_test_prompts,
    harmless_training_prompts,
    planned_data,
    restricted_test_prompts,
    safety_data,
    summary_test_posts,
)
from rpa_ray.recipes.cell_models import MAX_MODEL_LEN, MODEL_SEED, attack_needs, cell_models
from rpa_ray.recipes.model import DEFENCE_ROWS, in_order
from rpa_ray.world.datasets import CONTEXT_TOKENS, build_world, world_folder
from rpa_ray.world.shipped import place_shipped

MIN_FREE_BYTES = 500 * 2**20


def check_all(
    cells: Sequence[tuple[str, ExperimentSettings]], folders: dict[str, Path]
) -> list[str]:
    """Refuse what cannot run; return the models that were placed, which come with the package.

    Builds the embedded worlds (seconds) and places those models where they are not there yet.

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
    cache, placed = folders["RPA_RAY_CACHE"], list[str]()
    for where, settings in cells:
        try:
            placed += _prepare_world(settings, cache)
            check_data(settings, cache)
        except DataError as error:
            raise DataError(f"{where}{error}") from error
        except ConfigError as error:
            raise ConfigError(
                f"{where}{error.key}", error.rule, error.value, error.remedy
            ) from error
    return placed


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
    for check in (_check_data_source, _check_sizes, _check_lora, _check_deepspeed, check_models):
        check(settings, where)


def check_data(settings: ExperimentSettings, cache: Path) -> None:
    """Refuse too few rows, and prompts too long for the model; keys have no cell prefix.

    Raises:
        ConfigError: a batch of a model that has to be made cannot be cut over the ranks.
        DataError: the data cannot be read, are too few or too long.
    """
    _check_rows(settings, cache)
    _check_context(settings, cache)
    check_same_tokens(settings, cache)
    num_ranks = settings.cluster.num_ranks
    for recipe in in_order(cell_models(settings, cache).recipes(), cache):
        if recipe.job.batch_size % num_ranks:
            raise ConfigError(
                "cluster.num_ranks",
                f"divide {recipe.job.batch_size}, the batch of the model {recipe.id!r} to be made",
                num_ranks,
                "Choose another number of ranks.",
            )


def _prepare_world(settings: ExperimentSettings, cache: Path) -> list[str]:
    """Build the world of a cell's data or of its models; place and return the models shipped."""
    seed = settings.data.world_seed
    folder = world_folder(seed, cache)
    if settings.data.world == "embedded":
        build_world(seed, cache)
    recipes = cell_models(settings, cache).recipes()
    if not any(recipe.tokenizer_key == folder.name for recipe in recipes):
        return []
    return place_shipped(build_world(seed, cache), cache)


def _check_data_source(settings: ExperimentSettings, where: str) -> None:
    check_source(settings.data, where)


def _check_sizes(settings: ExperimentSettings, where: str) -> None:
    cluster, data, judge = settings.cluster, settings.data, settings.evaluation.judge
    if cluster.zero_stage == 0 and settings.model.dtype == "bfloat16":
        raise ConfigError(
            f"{where}cluster.zero_stage",
            "be 1, 2 or 3 with bfloat16 weights",
            0,
            "DeepSpeed keeps no fp32 masters at stage 0; set model.dtype to auto or float32, or "
            "stage 1.",
        )
    defence = defence_of(settings.defence)
    if defence.needs & DEFENCE_BATCHES:
        key = f"{where}defence.batch_size"
        _require_multiple(key, defence.safe_batch_size, cluster.num_ranks, "num_ranks")
    if settings.training is not None:
        batch_size = settings.training.batch_size
        _require_multiple(f"{where}attack.batch_size", batch_size, cluster.num_ranks, "num_ranks")
        key = f"{where}data.num_samples"
        _require_multiple(key, data.num_samples, batch_size, "attack.batch_size")
    if isinstance(settings.attack, RolloutConfig):
        _check_sft_share(settings.attack, data.num_samples, where)
    for key, num, batch_size in (
        ("data.reward_model.num_pairs", data.reward_model.num_pairs, data.reward_model.batch_size),
        ("evaluation.judge.num_rows", judge.num_rows, judge.batch_size),
    ):
        if num < batch_size:
            raise ConfigError(f"{where}{key}", f"fill one batch of {batch_size}", num, "Raise it.")


def _check_lora(settings: ExperimentSettings, where: str) -> None:
    training, defence = settings.training, defence_of(settings.defence)
    if training is None or training.lora is None or Need.COMPARED_WEIGHTS not in defence.needs:
        return
    raise ConfigError(
        f"{where}attack.lora",
        "be null where a defence compares the trained weights with another model's",
        training.lora.model_dump(exclude_none=True),
        "Leave attack.lora out, or take another defence.",
    )


def _check_sft_share(attack: RolloutConfig, num_samples: int, where: str) -> None:
    key = f"{where}attack.num_sft_samples"
    _require_multiple(key, attack.num_sft_samples, attack.batch_size, "attack.batch_size")
    if attack.num_sft_samples >= num_samples:
        raise ConfigError(
            key,
            f"be below data.num_samples ({num_samples}), of which it is a part",
            attack.num_sft_samples,
            "Lower it, or take `attack: sft`.",
        )


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
        require_json_object(path, f"{where}cluster.deepspeed", "name a file with a JSON object")


def _check_rows(settings: ExperimentSettings, cache: Path) -> None:
    data = planned_data(settings.data, cache)
    judge, reward_model = settings.evaluation.judge, settings.data.reward_model
    if settings.training is not None:
        _attack_pairs(settings, data)
    defence = defence_of(settings.defence)
    needs = attack_needs(settings) | defence.needs
    if needs & {Need.REWARDS, Need.COST_MODEL} or settings.data.name == "tldr":
        key = "data.reward_model.num_pairs"
        data.draw("reward_model", reward_model.num_pairs, seed=MODEL_SEED, key=key)
    safety = planned_data(safety_data(settings.data), cache)
    if not judge.trained:
        num_answers = 2 * len(safety.roles["classifier"])
        rows = "the rows of role 'classifier'"
        _require_rows("evaluation.judge.num_rows", judge.num_rows, num_answers, rows)
    recipes = cell_models(settings, cache).recipes()
    sizes = [r.job.batch_size for r in recipes if r.rows.kind in DEFENCE_ROWS]
    if needs & DEFENCE_BATCHES:
        sizes.append(defence.safe_batch_size)
    for size in sizes:
        num_rows = len(safety.roles["defence"])
        _require_rows("defence.batch_size", size, num_rows, "the rows of role 'defence'")
    if Need.HARMLESS_BATCH in needs:
        num_rows = len(harmless_training_prompts(settings.data, cache))
        what = "the harmless prompts to train on"
        _require_rows("defence.batch_size", defence.safe_batch_size, num_rows, what)


def _attack_pairs(settings: ExperimentSettings, data: PreferenceData) -> list[SafePair]:
    """Return the distinct pairs that the attack draws from."""
    num_samples, num_prompts = settings.data.num_samples, settings.data.num_prompts
    key = "data.num_samples" if num_prompts is None else "data.num_prompts"
    num = min(num_samples, num_prompts or num_samples)
    return data.draw("attack", num, seed=settings.seed, key=key)


def _require_rows(key: str, num: int, num_rows: int, what: str) -> None:
    if num > num_rows:
        raise DataError.broken_rule(
            key,
            f"be at most {num_rows} ({what})",
            num,
            "Lower it or bring a larger data set.",
        )


def _check_context(settings: ExperimentSettings, cache: Path) -> None:
    num = settings.evaluation.num_prompts
    prompts = restricted_test_prompts(settings.data, cache, num)
    prompts += harmless_test_prompts(settings.data, cache, num)
    model = settings.model.path
    if settings.data.name == "tldr":
        posts = [post.prompt for post in summary_test_posts(settings.data, cache, num)]
        _check_summary_model(settings, _lengths(model, posts, settings.data, cache))
        prompts += posts

    def fits(path: str, texts: Sequence[str], max_new_tokens: int, key: str) -> None:
        lengths = _lengths(path, texts, settings.data, cache)
        if lengths:
            context = CONTEXT_TOKENS if path in EMBEDDED_MODELS else context_tokens(Path(path))
            check_context(lengths, max_new_tokens, min(context, MAX_MODEL_LEN), key)

    fits(model, prompts, settings.evaluation.max_new_tokens, "evaluation.max_new_tokens")
    attack, data = settings.attack, planned_data(settings.data, cache)
    if isinstance(attack, RolloutConfig):
        asked = [pair.prompt for pair in _attack_pairs(settings, data)]
        fits(model, asked, attack.max_new_tokens, "attack.max_new_tokens")
    if not data.is_complete:
        refusals = settings.data.refusals
        asked = [pair.prompt for role in ROLE_SHARES for pair in data.roles[role]]
        fits(refusals.model, asked, refusals.max_new_tokens, "data.refusals.max_new_tokens")


def _lengths(path: str, texts: Sequence[str], data: DataSettings, cache: Path) -> list[int]:
    """Return the tokens of each prompt; nothing for a Hub model, which is not there yet."""
    tokenizer = Path(path)
    if path in EMBEDDED_MODELS:
        tokenizer = world_folder(data.world_seed, cache) / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        return []
    return prompt_lengths(tokenizer, Template(data.template), texts)


def _check_summary_model(settings: ExperimentSettings, lengths: Sequence[int]) -> None:
    """Refuse a reward model that would not read the summary at the end of a long post."""
    if not lengths:
        return
    num_tokens = max(lengths) + settings.evaluation.max_new_tokens
    max_tokens = settings.data.reward_model.max_tokens
    if max_tokens < num_tokens:
        raise DataError.broken_rule(
            "data.reward_model.max_tokens",
            f"be at least {num_tokens} (the longest post, {max(lengths)} tokens, and a summary)",
            max_tokens,
            "Raise it, with data.reward_model.path a model of as long a context.",
        )
