"""Whether the data are enough and their texts fit."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.attacks.sft import SFT
from rpa_ray.config import (
    EMBEDDED_MODELS,
    ConfigError,
    ExperimentSettings,
    RolloutConfig,
)
from rpa_ray.data.errors import DataError
from rpa_ray.data.formats import FORMATS
from rpa_ray.data.split import ROLE_SHARES, require_rows
from rpa_ray.data.template import Template
from rpa_ray.defences import defence_of, offline_defences
from rpa_ray.plan.checks.context import check_context, context_tokens, prompt_lengths
from rpa_ray.plan.checks.models import check_compared_weights, check_same_tokens
from rpa_ray.plan.checks.pairs import check_attack_tells_apart, check_models_tell_apart
from rpa_ray.plugin import DEFENCE_BATCHES, Need, SampledOfflineDefence
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import MAX_MODEL_LEN, MODEL_SEED, CellInputs, attack_needs
from rpa_ray.recipes.model import DEFENCE_ROWS, RowKind, in_order
from rpa_ray.recipes.sampled_prompts import restricted_prompts
from rpa_ray.scoring.text_rules import refusal_pattern
from rpa_ray.world.datasets import CONTEXT_TOKENS

MIN_REFUSALS = 0.9
"""Share of the defence split's safe answers that must be refusals where a defence learns them."""


def check_data(inputs: CellInputs) -> None:
    """Refuse too few rows, answers that are no refusals, too long prompts, and pairs of one row.

    Keys have no cell prefix.

    Raises:
        ConfigError: a batch of a model that has to be made cannot be cut over the ranks.
        DataError: the data cannot be read, are too few or too long, or a defence would learn
            other answers than refusals.
    """
    settings = inputs.settings
    _check_batches(inputs)
    check_rows(inputs)
    _check_refusals(inputs)
    _check_context(inputs)
    check_same_tokens(inputs)
    check_compared_weights(inputs)
    check_models_tell_apart(inputs)
    drawn = _attack_draw(settings)
    if drawn is not None and settings.training is not None:
        check_attack_tells_apart(inputs.data, settings, drawn.num, drawn.key)


def _check_batches(inputs: CellInputs) -> None:
    """Refuse ranks over which a batch of a model that has to be made cannot be cut."""
    num_ranks = inputs.settings.cluster.num_ranks
    for recipe in in_order(inputs.models.recipes(), inputs.cache):
        if recipe.job.batch_size % num_ranks:
            raise ConfigError(
                "cluster.num_ranks",
                f"divide {recipe.job.batch_size}, the batch of the model {recipe.id!r} to be made",
                num_ranks,
                "Choose another number of ranks.",
            )


def check_rows(inputs: CellInputs) -> None:
    """Refuse more rows than the data have.

    Raises:
        DataError: the data cannot be read or are too few.
    """
    settings = inputs.settings
    data = inputs.data.planned
    reward_model = settings.data.reward_model
    drawn = _attack_draw(settings)
    if drawn is not None:
        data.require("attack", drawn.num, key=drawn.key, domains=settings.data.domains)
    defence = defence_of(settings.defence)
    needs = attack_needs(settings) | defence.needs
    safety = inputs.data.safety.planned
    key = "data.reward_model.num_pairs"
    if Need.REWARDS in needs or FORMATS[settings.data.name].is_harmless_task:
        data.require("reward_model", reward_model.num_pairs, key=key)
    if Need.COST_MODEL in needs:
        safety.require("reward_model", reward_model.num_pairs, key=key)
    for name, judge in settings.evaluation.judges.items():
        if not judge.trained:
            # Rows that are made by rules are as many as one likes; the others stand in the data.
            most = int(2 * safety.num_judge_pairs[name] / max(1e-9, 1 - judge.hard_frac))
            rows = "the answers of half the prompts of role 'classifier' are a share 1 - hard_frac"
            key = f"evaluation.{name}.num_rows"
            require_rows(key, judge.num_rows, num_rows=most, what=rows)
    recipes = inputs.models.recipes()
    sizes = [r.job.batch_size for r in recipes if r.rows.kind in DEFENCE_ROWS]
    if needs & DEFENCE_BATCHES:
        sizes.append(defence.safe_batch_size)
    for size in sizes:
        safety.require("defence", size, key="defence.batch_size")
    _check_harmless(inputs)
    for offline in offline_defences(settings.defence):
        if isinstance(offline, SampledOfflineDefence):
            _check_sampled(offline, inputs)


def _check_sampled(offline: SampledOfflineDefence, inputs: CellInputs) -> None:
    """Refuse a hardening on answers without prompts or scorer, or with groups that are cut."""
    restricted_prompts(offline.config, inputs.data, seed=MODEL_SEED)
    group, cluster = offline.config.group_size, inputs.settings.cluster
    rows = cluster.micro_batch_size
    if offline.reads_whole_groups and rows is not None and rows % group:
        raise ConfigError(
            "cluster.micro_batch_size",
            f"be a multiple of defence.group_size ({group}) where {offline.config.name} compares "
            "the answers to a prompt in one backward pass",
            rows,
            f"Take {-(-rows // group) * group}.",
        )
    if offline.reads_whole_groups and cluster.micro_batch_tokens is not None:
        raise ConfigError(
            "cluster.micro_batch_tokens",
            f"be left out where {offline.config.name} compares the answers to a prompt in one "
            "backward pass",
            cluster.micro_batch_tokens,
            "Set it to null, and take cluster.micro_batch_size where a batch is too large.",
        )
    if offline.reads_harmless and inputs.models.helpfulness is None:
        raise ConfigError(
            "evaluation.helpfulness_model",
            f"be given where {offline.config.name} rewards answers to harmless prompts",
            None,
            "Name a reward model of helpfulness.",
        )


def _check_harmless(inputs: CellInputs) -> None:
    """Refuse to draw more harmless prompts than there are to train on."""
    settings, online = inputs.settings, defence_of(inputs.settings.defence)
    draws = [
        ("defence.batch_size", offline.config.batch_size)
        for offline in offline_defences(settings.defence)
        if Need.HARMLESS_BATCH in offline.needs
    ]
    draws += [
        ("defence.num_prompts", offline.config.num_prompts)
        for offline in offline_defences(settings.defence)
        if isinstance(offline, SampledOfflineDefence) and offline.reads_harmless
    ]
    if Need.HARMLESS_BATCH in online.needs:
        draws.append(("defence.batch_size", online.safe_batch_size))
    if isinstance(settings.attack, SFT.Config) and (num := settings.attack.num_harmless_samples):
        draws.append(("attack.num_harmless_samples", num))
    if draws and inputs.data.helpful_source is None:
        raise DataError.broken_rule(
            "data.helpful_path",
            f"be given where {draws[0][0]} counts harmless prompts",
            None,
            "Name a folder, a file or a Hub id of helpfulness dialogues.",
        )
    for key, num in draws:
        num_rows = len(inputs.data.harmless_training_rows)
        require_rows(key, num, num_rows=num_rows, what="the harmless prompts to train on")


def _check_refusals(inputs: CellInputs) -> None:
    """Refuse safe answers that help in a safe way where a defence has to learn to refuse."""
    safety = inputs.data.safety.planned
    recipes = inputs.models.recipes()
    if not (
        defence_of(inputs.settings.defence).reads_refusals
        or any(recipe.rows.kind is RowKind.REFUSALS for recipe in recipes)
    ):
        return
    # Those yet to be generated are kept only where they are refusals.
    if not safety.is_complete or not safety.roles["defence"]:
        return
    share = _refusal_frac(inputs.data.safety)
    if share <= MIN_REFUSALS:
        raise DataError.broken_rule(
            "data.safe_answers",
            f"give refusals, more than {MIN_REFUSALS:.0%} of the safe answers of role 'defence', "
            "where a defence learns them",
            f"{share:.0%}",
            "Set data.safe_answers: generated.",
        )


@lru_cache(maxsize=8)
def _refusal_frac(data: CellData) -> float:
    """Return the share of the safe answers of role 'defence' that are refusals."""
    pairs = data.planned.roles["defence"]
    return sum(refusal_pattern(pair.safe) for pair in pairs) / len(pairs)


class _Draw(NamedTuple):
    """How many distinct pairs an attack draws, and the config path that says so."""

    key: str
    num: int


def _attack_draw(settings: ExperimentSettings) -> _Draw | None:
    """Return how many pairs the attack draws from; None where it draws none."""
    attack, num_samples = settings.attack, settings.data.num_samples
    key, at_most = "data.num_prompts", settings.data.num_prompts
    if isinstance(attack, BestOfN.Config):
        key, at_most = "attack.num_prompts", attack.num_prompts
    elif settings.training is None:
        return None
    if at_most is None or at_most >= num_samples:
        return _Draw("data.num_samples", num_samples)
    return _Draw(key, at_most)


@lru_cache(maxsize=2**16)
def _longest_drawn(data: CellData, path: str, drawn: _Draw, seed: int) -> int:
    """Return the tokens of the longest prompt that an attack draws; 0 where they are not known."""
    domains = data.settings.domains
    pairs = data.planned.draw("attack", drawn.num, seed=seed, key=drawn.key, domains=domains)
    return max(_lengths(path, [pair.prompt for pair in pairs], data), default=0)


def _check_context(inputs: CellInputs) -> None:
    settings = inputs.settings
    evaluation = settings.evaluation
    prompts = inputs.data.restricted_prompts(evaluation)
    prompts += inputs.data.harmless_prompts(evaluation)
    model = settings.model.path
    if FORMATS[settings.data.name].is_harmless_task:
        posts = [post.prompt for post in inputs.data.summary_posts(evaluation)]
        _check_summary_model(settings, _lengths(model, posts, inputs.data))
        prompts += posts

    def fits(path: str, longest: int, max_new_tokens: int, key: str) -> None:
        if longest:
            context = CONTEXT_TOKENS if path in EMBEDDED_MODELS else context_tokens(Path(path))
            check_context(longest, max_new_tokens, min(context, MAX_MODEL_LEN), key)

    longest = max(_lengths(model, prompts, inputs.data), default=0)
    fits(model, longest, evaluation.max_new_tokens, "evaluation.max_new_tokens")
    attack, drawn = settings.attack, _attack_draw(settings)
    if drawn is not None and isinstance(attack, RolloutConfig):
        longest = _longest_drawn(inputs.data, model, drawn, settings.seed)
        fits(model, longest, attack.max_new_tokens, "attack.max_new_tokens")
    elif drawn is not None and isinstance(attack, BestOfN.Config):
        longest = _longest_drawn(inputs.data, model, drawn, settings.seed)
        fits(model, longest, evaluation.max_new_tokens, "evaluation.max_new_tokens")
    if not inputs.data.safety.planned.is_complete:
        refusals = settings.data.refusals
        longest = _longest_asked(inputs.data.safety, refusals.model)
        fits(refusals.model, longest, refusals.max_new_tokens, "data.refusals.max_new_tokens")


@lru_cache(maxsize=8)
def _longest_asked(data: CellData, path: str) -> int:
    """Return the tokens of the longest prompt that a refusal is written to; 0 if not known."""
    roles = data.planned.roles
    asked = [pair.prompt for role in ROLE_SHARES for pair in roles[role]]
    return max(_lengths(path, asked, data), default=0)


def _lengths(path: str, texts: Sequence[str], data: CellData) -> list[int]:
    """Return the tokens of each prompt; nothing for a Hub model, which is not there yet."""
    tokenizer = Path(path)
    if path in EMBEDDED_MODELS:
        tokenizer = data.world_folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        return []
    return prompt_lengths(tokenizer, Template(data.settings.template), texts)


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
