"""What a model is made from, as data: two equal recipes name the same folder of the cache."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from rpa_ray.recipes.content import content_key

RECIPE_VERSION = 2
"""Raised when the same recipe would give other weights."""


class ModelKind(StrEnum):
    """Which head a recipe trains."""

    CAUSAL = "causal"
    """Language model, next-token cross-entropy."""
    REWARD = "reward"
    """One score a text, Bradley-Terry on pairs."""
    COST = "cost"
    """One score a text, positive for unsafe ones, on pairs."""
    JUDGE = "judge"
    """Two classes, label 0 harmful."""
    ADAPTER = "adapter"
    """Low-rank adapter beside a frozen language model, next-token cross-entropy."""


class RowKind(StrEnum):
    """Which rows a recipe trains on; the names of the builders in ``training_rows``."""

    PRETRAINING = "pretraining"
    ALIGNMENT = "alignment"
    PERPLEXITY = "perplexity"
    HELPFUL_PAIRS = "helpful_pairs"
    PREFERENCES = "preferences"
    JUDGE_ROWS = "judge_rows"
    REFUSALS = "refusals"
    UNSAFE_ANSWERS = "unsafe_answers"


DEFENCE_ROWS = frozenset({RowKind.REFUSALS, RowKind.UNSAFE_ANSWERS})
"""Rows of the defence split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of one data set, chosen by settings that are all in the key."""

    kind: RowKind
    data_key: str
    """Content fingerprint of the data set (world fingerprint, file hash, or pinned revision)."""
    settings: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSettings:
    """How long and how fast a model is trained."""

    num_steps: int
    batch_size: int
    learning_rate: float
    schedule: str = "cosine"
    warmup_frac: float = 0.05
    max_grad_norm: float = 1.0
    max_tokens: int = 128
    dtype: str
    """Type of the weights that learn."""
    rounded: bool = False
    """Saved as bfloat16, whatever learned: the same numbers for every type that loads them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """A model that this project trains, addressed by everything that makes it what it is."""

    id: str
    """Readable part of the folder name."""
    kind: ModelKind
    start: "ModelRecipe | str | None"
    """Recipe or folder to start from; None initialises ``architecture`` at random."""
    tokenizer: str
    """Folder or Hub id of the tokenizer."""
    tokenizer_key: str
    rows: Rows
    job: JobSettings
    seed: int
    architecture: dict[str, Any] = field(default_factory=dict)
    """Sizes of what begins at random: of a model without ``start``, with its ``model_type`` where
    that is not ``llama``, or an adapter's ``rank`` and ``alpha``."""
    ranked_by: "ModelRecipe | str | None" = None
    """The language model whose margins choose the preferences that are reversed; None: chance."""
    scored_by: "dict[str, ModelRecipe | str]" = field(default_factory=dict)
    """The models that score the answers which it learns from, by name; none where it has rows."""
    defence: dict[str, Any] | None = None
    """Config of the offline defence whose objective and hooks train it; None: those of the kind."""

    @property
    def made_from(self) -> "list[ModelRecipe]":
        """Return the recipes that have to be made before this one."""
        every = (self.start, self.ranked_by, *self.scored_by.values())
        return [model for model in every if isinstance(model, ModelRecipe)]

    @property
    def model_type(self) -> str | None:
        """Return the architecture, as ``config.json`` names it; None where a folder begins it."""
        if self.start is None:
            return str(self.architecture.get("model_type", "llama"))
        return self.start.model_type if isinstance(self.start, ModelRecipe) else None

    @property
    def hardenings(self) -> "list[ModelRecipe]":
        """Return the recipes of the offline defences that make it, first to last."""
        if self.defence is None:
            return []
        earlier = self.start.hardenings if isinstance(self.start, ModelRecipe) else []
        return [*earlier, self]

    @property
    def is_unsafe(self) -> bool:
        """Return whether it learns what is unsafe: reversed preferences, or unsafe answers."""
        rows = self.rows
        return rows.kind is RowKind.UNSAFE_ANSWERS or float(rows.settings.get("rho", 0)) > 0

    def key(self) -> str:
        """Return the hash of all that determines the weights."""
        scorers = tuple((name, _key_of(model)) for name, model in sorted(self.scored_by.items()))
        return _key(self, _key_of(self.start), _key_of(self.ranked_by), scorers)

    def __hash__(self) -> int:
        return hash((self.id, self.kind, self.seed, self.job, self.rows.data_key))

    def folder(self, cache: Path) -> Path:
        """Return where the model lies once it is made."""
        return cache / f"{self.id}-{self.key()}"

    def is_made(self, cache: Path) -> bool:
        """Return whether the model is there; folders appear whole or not at all."""
        name = "adapter_config.json" if self.kind is ModelKind.ADAPTER else "config.json"
        return (self.folder(cache) / name).is_file()


@lru_cache(maxsize=1024)
def _key(
    recipe: ModelRecipe,
    start: str | None,
    ranked_by: str | None,
    scored_by: tuple[tuple[str, str | None], ...],
) -> str:
    """Return the key of a recipe, given those of the models that it is made from."""
    parts = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
    parts |= {"rows": asdict(recipe.rows), "job": asdict(recipe.job)}
    parts |= {"start": start, "ranked_by": ranked_by, "scored_by": dict(scored_by)}
    del parts["tokenizer"]
    # Fields that came later leave the keys of models without them as they were.
    for name in ("ranked_by", "scored_by", "defence"):
        if not parts[name]:
            del parts[name]
    text = json.dumps({"version": RECIPE_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _key_of(model: ModelRecipe | str | None) -> str | None:
    if isinstance(model, ModelRecipe):
        return model.key()
    return None if model is None else content_key(model)


def in_order(recipes: list[ModelRecipe], cache: Path) -> list[ModelRecipe]:
    """Return what is still to be made, each once, starts before what builds on them."""
    ordered: dict[str, ModelRecipe] = {}

    def visit(recipe: ModelRecipe) -> None:
        if recipe.is_made(cache):
            return
        for earlier in recipe.made_from:
            visit(earlier)
        ordered.setdefault(recipe.key(), recipe)

    for recipe in recipes:
        visit(recipe)
    return list(ordered.values())


def made_from(model: ModelRecipe | str | None) -> str:
    """Return in words what a model is or began with, one of the embedded world as that."""
    if not isinstance(model, ModelRecipe):
        return model or "left out"
    start = model.start
    if start is None:
        return "the embedded language model"
    return f"(on the embedded {start.id})" if isinstance(start, ModelRecipe) else f"(on {start})"
