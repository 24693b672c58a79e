"""Whether the data are enough and their texts fit."""

from collections.abc import Sequence
from pathlib import Path

from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.config import (
    EMBEDDED_MODELS,
    ConfigError,
    ExperimentSettings,
    RolloutConfig,
)
from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import SafePair
from rpa_ray.data.split import JUDGE_HALVES, ROLE_SHARES, half_of
from rpa_ray.data.template import Template
from rpa_ray.defences import defence_of
from rpa_ray.plan.checks.context import check_context, context_tokens, prompt_lengths
from rpa_ray.plan.checks.models import check_same_tokens
from rpa_ray.plugin import DEFENCE_BATCHES, Need
from rpa_ray.recipes.cell_data import (
    CellData,
    PreferenceData,
)
from rpa_ray.recipes.cell_models import MAX_MODEL_LEN, MODEL_SEED, CellInputs, attack_needs
from rpa_ray.recipes.model import DEFENCE_ROWS, RowKind, in_order
from rpa_ray.scoring.text_rules import refusal_pattern
from rpa_ray.world.datasets import CONTEXT_TOKENS

MIN_REFUSALS = 0.9
"""Share of the defence split's safe answers that must be refusals where a defence learns them."""


def check_data(inputs: CellInputs) -> None:
    """Refuse too few rows, answers that are no refusals, and too long prompts.

    Keys have no cell prefix.

    Raises:
        ConfigError: a batch of a model that has to be made cannot be cut over the ranks.
        DataError: the data cannot be read, are too few or too long, or a defence would learn
            other answers than refusals.
    """
    settings = inputs.settings
    _check_rows(inputs)
    _check_refusals(inputs)
    _check_context(inputs)
    check_same_tokens(inputs)
    num_ranks = settings.cluster.num_ranks
    for recipe in in_order(inputs.models.recipes(), inputs.cache):
        if recipe.job.batch_size % num_ranks:
            raise ConfigError(
                "cluster.num_ranks",
                f"divide {recipe.job.batch_size}, the batch of the model {recipe.id!r} to be made",
                num_ranks,
                "Choose another number of ranks.",
            )


def _check_rows(inputs: CellInputs) -> None:
    settings = inputs.settings
    data = inputs.data.planned
    reward_model = settings.data.reward_model
    _attack_pairs(settings, data)
    defence = defence_of(settings.defence)
    needs = attack_needs(settings) | defence.needs
    if needs & {Need.REWARDS, Need.COST_MODEL} or settings.data.name == "tldr":
        key = "data.reward_model.num_pairs"
        data.draw("reward_model", reward_model.num_pairs, seed=MODEL_SEED, key=key)
    safety = inputs.data.safety.planned
    for name, judge in settings.evaluation.judges.items():
        if not judge.trained:
            # Rows that are made by rules are as many as one likes; the others stand in the data.
            num_answers = 2 * len(half_of(safety.roles["classifier"], JUDGE_HALVES[name]))
            most = int(num_answers / max(1e-9, 1 - judge.hard_frac))
            rows = "the answers of half the prompts of role 'classifier' are a share 1 - hard_frac"
            _require_rows(f"evaluation.{name}.num_rows", judge.num_rows, most, rows)
    recipes = inputs.models.recipes()
    sizes = [r.job.batch_size for r in recipes if r.rows.kind in DEFENCE_ROWS]
    if needs & DEFENCE_BATCHES:
        sizes.append(defence.safe_batch_size)
    for size in sizes:
        num_rows = len(safety.roles["defence"])
        _require_rows("defence.batch_size", size, num_rows, "the rows of role 'defence'")
    if Need.HARMLESS_BATCH in needs:
        num_rows = len(inputs.data.harmless_training_prompts)
        what = "the harmless prompts to train on"
        _require_rows("defence.batch_size", defence.safe_batch_size, num_rows, what)


def _check_refusals(inputs: CellInputs) -> None:
    """Refuse safe answers that help in a safe way where a defence has to learn to refuse."""
    safety = inputs.data.safety.planned
    recipes = inputs.models.recipes()
    if not (
        defence_of(inputs.settings.defence).reads_refusals
        or any(recipe.rows.kind is RowKind.REFUSALS for recipe in recipes)
    ):
        return
    pairs = safety.roles["defence"]
    # Those yet to be generated are kept only where they are refusals.
    if not safety.is_complete or not pairs:
        return
    share = sum(refusal_pattern(pair.safe) for pair in pairs) / len(pairs)
    if share <= MIN_REFUSALS:
        is_harmless_task = inputs.settings.data.name == "tldr"
        raise DataError.broken_rule(
            "data.safety_path" if is_harmless_task else "data.safe_answers",
            f"give refusals, more than {MIN_REFUSALS:.0%} of the safe answers of role 'defence', "
            "where a defence learns them",
            f"{share:.0%}",
            "Bring rows whose safe answers are refusals."
            if is_harmless_task
            else "Set data.safe_answers: generated.",
        )


def _attack_pairs(settings: ExperimentSettings, data: PreferenceData) -> list[SafePair]:
    """Return the distinct pairs that the attack draws from; none where it draws none."""
    attack, num_samples = settings.attack, settings.data.num_samples
    key, at_most = "data.num_prompts", settings.data.num_prompts
    if isinstance(attack, BestOfN.Config):
        key, at_most = "attack.num_prompts", attack.num_prompts
    elif settings.training is None:
        return []
    if at_most is None or at_most >= num_samples:
        key, at_most = "data.num_samples", num_samples
    return data.draw("attack", at_most, seed=settings.seed, key=key)


def _require_rows(key: str, num: int, num_rows: int, what: str) -> None:
    if num > num_rows:
        raise DataError.broken_rule(
            key,
            f"be at most {num_rows} ({what})",
            num,
            "Lower it or bring a larger data set.",
        )


def _check_context(inputs: CellInputs) -> None:
    settings = inputs.settings
    evaluation = settings.evaluation
    prompts = inputs.data.restricted_prompts(evaluation)
    prompts += inputs.data.harmless_prompts(evaluation)
    model = settings.model.path
    if settings.data.name == "tldr":
        posts = [post.prompt for post in inputs.data.summary_posts(evaluation)]
        _check_summary_model(settings, _lengths(model, posts, inputs.data))
        prompts += posts

    def fits(path: str, texts: Sequence[str], max_new_tokens: int, key: str) -> None:
        lengths = _lengths(path, texts, inputs.data)
        if lengths:
            context = CONTEXT_TOKENS if path in EMBEDDED_MODELS else context_tokens(Path(path))
            check_context(lengths, max_new_tokens, min(context, MAX_MODEL_LEN), key)

    fits(model, prompts, evaluation.max_new_tokens, "evaluation.max_new_tokens")
    attack, data = settings.attack, inputs.data.planned
    asked = [pair.prompt for pair in _attack_pairs(settings, data)]
    if isinstance(attack, RolloutConfig):
        fits(model, asked, attack.max_new_tokens, "attack.max_new_tokens")
    elif isinstance(attack, BestOfN.Config):
        fits(model, asked, evaluation.max_new_tokens, "evaluation.max_new_tokens")
    if not data.is_complete:
        refusals = settings.data.refusals
        asked = [pair.prompt for role in ROLE_SHARES for pair in data.roles[role]]
        fits(refusals.model, asked, refusals.max_new_tokens, "data.refusals.max_new_tokens")


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
