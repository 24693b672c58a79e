"""Whether every model that learns from pairs reads two different rows of each."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from rpa_ray.config import EMBEDDED_MODELS, ExperimentSettings, RolloutConfig
from rpa_ray.data.collate import encode_answered
from rpa_ray.data.rows import SafePair
from rpa_ray.data.template import Template
from rpa_ray.data.told_apart import Encode, require_told_apart, sides
from rpa_ray.plan.checks.context import context_tokens, prompt_lengths
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.rows import encoder_of, pairs_to_tell_apart
from rpa_ray.world.datasets import CONTEXT_TOKENS

_ADDED_TOKENS = 32
"""What a template and marks of a tokenizer put between a prompt and its answer, and more."""


def check_models_tell_apart(inputs: CellInputs) -> None:
    """Refuse pairs whose two answers are one row to a model that has to be made.

    Raises:
        DataError: as `require_told_apart`.
    """
    if inputs.data.planned.is_complete and inputs.data.safety.planned.is_complete:
        for recipe in inputs.models.recipes():
            _check_model(inputs.data, recipe)


def check_attack_tells_apart(
    data: CellData, settings: ExperimentSettings, num: int, key: str
) -> None:
    """Refuse pairs whose two answers are one row to the policy that learns from them.

    Raises:
        DataError: as `require_told_apart`.
    """
    attack = settings.attack
    imitates = not isinstance(attack, RolloutConfig) or attack.num_sft_samples > 0
    if imitates and data.planned.is_complete:
        _check_policy(data, settings.model.path, num, settings.seed, key)


@lru_cache(maxsize=2**10)
def _check_model(data: CellData, recipe: ModelRecipe) -> None:
    found = pairs_to_tell_apart(recipe.rows, data)
    if found is None or not (Path(recipe.tokenizer) / "tokenizer.json").is_file():
        return
    key, pairs = found
    template = Template(str(recipe.rows.settings.get("template", Template.PLAIN_QA)))
    added = _ADDED_TOKENS if template is Template.PLAIN_QA else recipe.job.max_tokens
    _check(
        pairs,
        [len(pair.prompt.encode()) + added for pair in pairs],
        Path(recipe.tokenizer),
        partial(encoder_of, recipe.rows),
        max_tokens=recipe.job.max_tokens,
        where=data.of_key(recipe.rows.data_key).where,
        key=key,
    )


@lru_cache(maxsize=2**16)
def _check_policy(data: CellData, path: str, num: int, seed: int, key: str) -> None:
    folder = data.world_folder / "tokenizer" if path in EMBEDDED_MODELS else Path(path)
    if not (folder / "tokenizer.json").is_file():
        return
    context = CONTEXT_TOKENS if path in EMBEDDED_MODELS else context_tokens(folder)
    template = Template(data.settings.template)
    domains = data.settings.domains
    pairs = data.planned.draw("attack", num, seed=seed, key=key, domains=domains)
    lengths = prompt_lengths(folder, template, [pair.prompt for pair in pairs])
    _check(
        pairs,
        [length + _ADDED_TOKENS for length in lengths],
        folder,
        lambda tokenizer: (
            lambda row: encode_answered(tokenizer, template, row, mask="response").ids
        ),
        max_tokens=context,
        where=data.where,
        key="data.path",
    )


def _check(
    pairs: Sequence[SafePair],
    num_before: Sequence[int],
    folder: Path,
    encoder: Callable[..., Encode],
    *,
    max_tokens: int,
    where: Callable[[Sequence[SafePair]], str],
    key: str,
) -> None:
    """Ask the tokenizer in a folder about the pairs that begin alike; it is loaded for those.

    ``num_before`` is the most tokens that can come before the answers of each pair.
    """
    suspects = {
        pair.id
        for pair, num in zip(pairs, num_before, strict=True)
        if _begins_alike(pair, max_tokens - num)
    }
    if not suspects:
        return
    from transformers import AutoTokenizer

    encode = encoder(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))

    def read() -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        for pair in pairs:
            safe, unsafe = sides(pair)
            if pair.id in suspects:
                yield encode(safe)[:max_tokens], encode(unsafe)[:max_tokens]
            else:
                yield (0,), (1,)

    require_told_apart(pairs, read(), encode, where=where, max_tokens=max_tokens, key=key)


def _begins_alike(pair: SafePair, num_tokens: int) -> bool:
    """Return whether the two answers may be one in so many tokens: a token is a byte or more."""
    num_bytes = max(0, num_tokens)
    safe, unsafe = (
        answer.strip().casefold().encode()[:num_bytes] for answer in (pair.safe, pair.unsafe)
    )
    return safe == unsafe
