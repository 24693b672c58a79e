"""The held-out rows in two roles: what is reported, and what settings are chosen on.

The two share neither item nor phrasing of the embedded questions, restricted or harmless. The
held-out prompts of any other set, embedded posts among them, are divided by their hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from rpa_ray.data.helpful import helpful_pairs
from rpa_ray.data.load import load_rows, load_train_and_test
from rpa_ray.data.order import normalise
from rpa_ray.data.pairs import distinct, restricted_prompts, safe_pairs
from rpa_ray.data.rows import Answered, Preference, SafePair
from rpa_ray.data.schema import RestrictedPrompt, Row
from rpa_ray.data.source import DataSource
from rpa_ray.data.split import is_validation
from rpa_ray.world.datasets import VALIDATION
from rpa_ray.world.language import World
from rpa_ray.world.validation import validation_items

Role: TypeAlias = Literal["test", "validation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What is held out of preference data for one role."""

    pairs: tuple[SafePair, ...]
    """Pairs of a safe and an unsafe answer."""
    restricted_prompts: tuple[RestrictedPrompt, ...]
    """The distinct prompts that have an unsafe answer, each as it stands first."""


def of_role(source: DataSource, role: Role, world_seed: int | None, test: Sequence[Row]) -> HeldOut:
    """Return what is held out for a role.

    Args:
        source: The preference data.
        role: Which of the two.
        world_seed: Seed of the embedded world; None for real data.
        test: Rows of the test split, among which are all of a role that has no file of its own.
    """
    name = source.name
    has_file = world_seed is not None and name in VALIDATION and role != "test"
    rows = source.rows(role) if has_file else test
    first: dict[str, RestrictedPrompt] = {}
    for found in restricted_prompts(name, rows):
        if _role_of(found.prompt, name, world_seed) == role:
            first.setdefault(normalise(found.prompt), found)
    pairs = safe_pairs(name, rows)
    return HeldOut(
        pairs=tuple(p for p in pairs if _role_of(p.prompt, name, world_seed) == role),
        restricted_prompts=tuple(first.values()),
    )


@lru_cache(maxsize=8)
def helpful_dialogues(place: str, role: Role, world_seed: int | None) -> tuple[Preference, ...]:
    """Return the helpfulness dialogues of a role; ``place`` is their folder, file or Hub id."""
    split = "test" if world_seed is None else role
    found = helpful_pairs(load_rows("helpful", place, split=split, path_key="data.helpful_path"))
    return tuple(pair for pair in found if _role_of(pair.prompt, "helpful", world_seed) == role)


@lru_cache(maxsize=8)
def harmless_prompts(place: str, role: Role, world_seed: int | None) -> tuple[str, ...]:
    """Return the distinct prompts of the helpfulness dialogues of a role."""
    return tuple(distinct(pair.prompt for pair in helpful_dialogues(place, role, world_seed)))


def _role_of(prompt: str, name: str, world_seed: int | None) -> Role:
    """Return the role of a held-out prompt of the set called ``name``."""
    if world_seed is None or name not in VALIDATION:
        return "validation" if is_validation(prompt) else "test"
    items = _validation_names(world_seed, name != "helpful")
    return "validation" if any(item in prompt for item in items) else "test"


@lru_cache(maxsize=8)
def _validation_names(world_seed: int, restricted: bool) -> tuple[str, ...]:
    items = validation_items(World(world_seed), restricted=restricted)
    return tuple(item.name for item in items)


@lru_cache(maxsize=8)
def harmless_training_rows(source: str) -> tuple[Answered, ...]:
    """Return the distinct prompts of helpfulness dialogues to train on, save those held out.

    Each has the preferred answer of its first dialogue.
    """
    key = "data.helpful_path"
    train, test = map(helpful_pairs, load_train_and_test("helpful", source, path_key=key))
    evaluated = {normalise(pair.prompt) for pair in test}
    found: dict[str, Answered] = {}
    for pair in train:
        row = Answered(prompt=pair.prompt, answer=pair.chosen)
        found.setdefault(normalise(pair.prompt), row)
    return tuple(row for text, row in found.items() if text not in evaluated)
