"""The preference data of a cell, split by role; what is counted of them is counted once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rpa_ray.data.rows import SafePair
from rpa_ray.data.source import Provenance
from rpa_ray.data.split import (
    JUDGE_HALVES,
    RoleManifest,
    draw,
    half_of,
    manifest,
    require_rows,
)


@dataclass(frozen=True, kw_only=True)
class PreferenceData:
    """A harmlessness set, split by role, with its fingerprint."""

    key: str
    """Names the content: world fingerprint and set, file hash, or Hub id with commit; with what
    else decides which rows there are."""
    roles: dict[str, tuple[SafePair, ...]]
    restricted_prompts: Mapping[str, tuple[str, ...]]
    """The distinct held-out prompts that have an unsafe answer, by ``test`` and ``validation``."""
    provenance: Provenance
    is_complete: bool = True
    """False where refusals are yet to be generated: at most so many rows, safe answers empty."""

    def draw(self, role: str, num: int, *, seed: int, key: str) -> list[SafePair]:
        """Return ``num`` pairs of a role; ``key`` is the config path an error names."""
        return draw(self.roles[role], num, seed=seed, role=role, key=key)

    def require(self, role: str, num: int, *, key: str) -> None:
        """Refuse to draw more pairs of a role than there are; ``key`` is the config path named."""
        require_rows(self.roles[role], num, role=role, key=key)

    @cached_property
    def manifest(self) -> dict[str, RoleManifest]:
        """Return size and hash of every role."""
        return manifest(self.roles)

    @cached_property
    def num_judge_pairs(self) -> dict[str, int]:
        """Return how many pairs there are for each judge to learn from, by its name."""
        pairs = self.roles["classifier"]
        return {name: len(half_of(pairs, half)) for name, half in JUDGE_HALVES.items()}
