"""The preference data of a cell, split by role; what is counted of them is counted once.

Data of one's own, and those of the Hub, are read and checked once: their pairs then lie in a folder
of the cache, which the driver and every rank map into memory.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from rpa_ray.data.order import digest
from rpa_ray.data.pair_table import PairTable, write_pairs
from rpa_ray.data.rows import SafePair
from rpa_ray.data.schema import RestrictedPrompt
from rpa_ray.data.source import UNPINNED, DataSource, Provenance
from rpa_ray.data.split import (
    JUDGE_HALVES,
    RoleManifest,
    draw,
    half_of,
    manifest,
    of_domains,
    require_rows,
    roles_fingerprint,
)
from rpa_ray.recipes.refusals import RefusalSet
from rpa_ray.run_folder.files import read_json, say_once, whole_folder, write_json

PAIRS_VERSION = 3
"""Raised when the same rows would give other pairs, other roles, another order or another file."""

_INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class PreferenceData:
    """A harmlessness set, split by role, with its fingerprint."""

    key: str
    """Names the content: world fingerprint and set, file hash, or Hub id with commit; with what
    else decides which rows there are."""
    roles: Mapping[str, Sequence[SafePair]]
    restricted_prompts: Mapping[str, tuple[RestrictedPrompt, ...]]
    """The distinct held-out prompts that have an unsafe answer, by ``test`` and ``validation``."""
    provenance: Provenance
    is_complete: bool = True
    """False where refusals are yet to be generated: at most so many rows, safe answers empty."""

    def draw(
        self,
        role: str,
        num: int,
        *,
        seed: int,
        key: str,
        domains: Collection[str] | None = None,
    ) -> list[SafePair]:
        """Return ``num`` pairs of a role; ``key`` is the config path an error names.

        ``domains`` are the harm categories they are drawn from; None takes all.
        """
        rows = of_domains(self.roles[role], domains, key="data.domains")
        return draw(rows, num, seed=seed, role=role, key=key)

    def require(
        self, role: str, num: int, *, key: str, domains: Collection[str] | None = None
    ) -> None:
        """Refuse to draw more pairs of a role than there are, as :meth:`draw` would."""
        num_rows = len(of_domains(self.roles[role], domains, key="data.domains"))
        require_rows(key, num, num_rows=num_rows, what=f"the rows of role {role!r}")

    @cached_property
    def manifest(self) -> dict[str, RoleManifest]:
        """Return size and hash of every role."""
        return manifest(self.roles)

    @cached_property
    def num_judge_pairs(self) -> dict[str, int]:
        """Return how many pairs there are for each judge to learn from, by its name."""
        pairs = self.roles["classifier"]
        return {name: len(half_of(pairs, half)) for name, half in JUDGE_HALVES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceSource:
    """What decides which preference data a cell has."""

    rows: DataSource
    all_pairs: bool
    """Whether the attacker is also told of pairs of two safe or two unsafe answers."""
    refusals: RefusalSet | None
    """Refusals that take the place of the safe answers."""
    made_in: Path | None
    """The cache that holds the refusals; None until they are generated."""
    world_seed: int | None
    """Seed of the embedded world; None for real data."""
    measured: DataSource | None
    """Other data that safety is measured with: their held-out prompts are trained on nowhere."""

    @property
    def is_complete(self) -> bool:
        """Whether every pair has its safe answer."""
        return self.refusals is None or self.made_in is not None

    def key(self) -> str:
        """Return what names the content."""
        parts = [self.rows.key()]
        if self.refusals is not None:
            parts.append(f"refusals-{self.refusals.key()}")
        if self.all_pairs:
            parts.append("all_pairs")
        if self.measured is not None:
            parts.append(f"without-{digest(self.measured.key())[:8]}")
        return "/".join((*parts, f"roles-{roles_fingerprint()}"))

    def folder(self, cache: Path) -> Path | None:
        """Return where the pairs lie once they were read; None where they are read each time."""
        origin = self.rows.provenance()
        # The embedded sets are small, and what the Hub was not asked about may change.
        if self.rows.world is not None or origin.revision == UNPINNED:
            return None
        name = digest(PAIRS_VERSION, self.key(), origin.source, self.is_complete)
        return cache / f"pairs-{name[:12]}"


def shared(
    source: PreferenceSource, cache: Path, read: Callable[[PreferenceSource], PreferenceData]
) -> PreferenceData:
    """Return the data of a source, mapped from ``cache`` where a process has read them before."""
    folder = source.folder(cache)
    if folder is None:
        return read(source)
    if (mapped := _mapped(folder)) is not None:
        return mapped
    found = read(source)
    try:
        _write(found, folder)
    except OSError as error:
        say_once(f"{folder} could not be written ({error}): each process holds its own rows.")
        return found
    return _mapped(folder) or found


def _mapped(folder: Path) -> PreferenceData | None:
    """Return what `_write` left in a folder; None where nothing whole is there."""
    index = read_json(folder / _INDEX, dict)
    if index is None:
        return None
    try:
        roles = {role: PairTable(folder / f"{role}.arrow") for role in index["roles"]}
    except (OSError, ValueError) as error:
        say_once(f"{folder} is not whole ({error}): each process holds its own rows. Delete it.")
        return None
    return PreferenceData(
        key=index["key"],
        roles=roles,
        restricted_prompts={
            role: tuple(RestrictedPrompt(*found) for found in of)
            for role, of in index["restricted_prompts"].items()
        },
        provenance=Provenance(**index["provenance"]),
        is_complete=index["is_complete"],
    )


def _write(data: PreferenceData, folder: Path) -> None:
    """Have the data in a folder, whole; one that is there stays."""
    with whole_folder(folder) as unfinished:
        for role, pairs in data.roles.items():
            write_pairs(unfinished / f"{role}.arrow", pairs)
        index = {
            "key": data.key,
            "roles": list(data.roles),
            "restricted_prompts": data.restricted_prompts,
            "provenance": asdict(data.provenance),
            "is_complete": data.is_complete,
        }
        write_json(unfinished / _INDEX, index)
