"""Recipes of the embedded models: base, chat, perplexity, helpfulness, and another chat model.

They learn in float32, which every processor computes, and are rounded to bfloat16 once: one set of
numbers for both types of weights. Sizes and rates are those at which the base model complies with
about half of the restricted prompts and the chat model refuses almost all; about four CPU-minutes
together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_ray.recipes.model import JobSettings, ModelKind, ModelRecipe, RowKind, Rows
from rpa_ray.world.datasets import CONTEXT_TOKENS, world_folder

ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
}
QWEN2 = ARCHITECTURE | {"model_type": "qwen2"}
"""Another architecture of the same sizes; without a type it is a Llama."""
EMBEDDED_DTYPE = "float32"
"""Type in which everything learns that begins with the embedded models."""


def _job(num_steps: int, batch_size: int, learning_rate: float) -> JobSettings:
    return JobSettings(
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        dtype=EMBEDDED_DTYPE,
        rounded=True,
    )


BASE = _job(num_steps=500, batch_size=48, learning_rate=3e-3)
CHAT = _job(num_steps=200, batch_size=48, learning_rate=1e-3)
PERPLEXITY = _job(num_steps=300, batch_size=48, learning_rate=3e-3)
HELPFULNESS = _job(num_steps=100, batch_size=16, learning_rate=5e-4)
OTHER_SEED = 1000
"""Added to the seed of the weights, and of the order of the rows, of the other chat model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldModels:
    """The models of one world, as recipes."""

    base: ModelRecipe
    chat: ModelRecipe
    perplexity: ModelRecipe
    helpfulness: ModelRecipe
    other_base: ModelRecipe
    """What ``base`` would be, had it begun from other random weights."""
    other_chat: ModelRecipe
    """What ``chat`` would be, had it begun from other random weights."""
    qwen2_base: ModelRecipe
    """What ``base`` would be as a Qwen2 of the same sizes."""
    qwen2_chat: ModelRecipe
    """What ``chat`` would be as a Qwen2 of the same sizes."""


def world_models(seed: int, cache: Path) -> WorldModels:
    """Return the recipes of the world of ``seed``."""
    folder = world_folder(seed, cache)

    def recipe(
        name: str,
        kind: ModelKind,
        start: ModelRecipe | None,
        rows: RowKind,
        job: JobSettings,
        seed: int = seed,
        architecture: Mapping[str, Any] = ARCHITECTURE,
    ) -> ModelRecipe:
        return ModelRecipe(
            id=name,
            kind=kind,
            start=start,
            tokenizer=str(folder / "tokenizer"),
            tokenizer_key=folder.name,
            rows=Rows(kind=rows, data_key=folder.name),
            job=job,
            seed=seed,
            architecture=dict(architecture) if start is None else {},
        )

    base = recipe("base", ModelKind.CAUSAL, None, RowKind.PRETRAINING, BASE)
    other = seed + OTHER_SEED
    other_base = recipe("other_base", ModelKind.CAUSAL, None, RowKind.PRETRAINING, BASE, other)
    qwen2_base = recipe(
        "qwen2_base", ModelKind.CAUSAL, None, RowKind.PRETRAINING, BASE, architecture=QWEN2
    )
    return WorldModels(
        base=base,
        chat=recipe("chat", ModelKind.CAUSAL, base, RowKind.ALIGNMENT, CHAT),
        perplexity=recipe("perplexity", ModelKind.CAUSAL, None, RowKind.PERPLEXITY, PERPLEXITY),
        helpfulness=recipe(
            "helpfulness", ModelKind.REWARD, base, RowKind.HELPFUL_PAIRS, HELPFULNESS
        ),
        other_base=other_base,
        other_chat=recipe(
            "other_chat", ModelKind.CAUSAL, other_base, RowKind.ALIGNMENT, CHAT, other
        ),
        qwen2_base=qwen2_base,
        qwen2_chat=recipe("qwen2_chat", ModelKind.CAUSAL, qwen2_base, RowKind.ALIGNMENT, CHAT),
    )
