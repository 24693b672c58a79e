"""Which rows a cell works with: where data lie and who may see which prompt."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rpa_ray.config import DataSettings
from rpa_ray.data.load import load_rows
from rpa_ray.data.pairs import harmless_prompts, helpful_pairs, restricted_prompts, safe_pairs
from rpa_ray.data.rows import Preference, SafePair
from rpa_ray.data.split import by_role, draw, roles_fingerprint
from rpa_ray.world.datasets import world_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceData:
    """A harmlessness set, split by role, with its fingerprint."""

    key: str
    """Names the content: world fingerprint and set, file hash, or Hub id with revision."""
    roles: dict[str, tuple[SafePair, ...]]

    def draw(self, role: str, num: int, *, seed: int, key: str) -> list[SafePair]:
        """Return ``num`` pairs of a role; ``key`` is the config path an error names."""
        return draw(self.roles[role], num, seed=seed, role=role, key=key)


def source_of(data: DataSettings, cache: Path) -> str:
    """Return the folder, file or Hub id of the preference data."""
    if data.world == "embedded":
        return str(world_folder(data.world_seed, cache) / "data" / data.name)
    assert data.path is not None
    return data.path


def preference_data(data: DataSettings, cache: Path) -> PreferenceData:
    """Return the checked, paired and split preference data of a cell.

    Raises:
        DataError: a file is missing, broken, or not of the schema.
    """
    world = world_folder(data.world_seed, cache).name if data.world == "embedded" else None
    return _preference_data(data.name, source_of(data, cache), world)


def restricted_test_prompts(data: DataSettings, cache: Path, num: int) -> list[str]:
    """Return the first ``num`` held-out restricted prompts."""
    return list(_restricted_test_prompts(data.name, source_of(data, cache), num))


def helpful_folder(data: DataSettings, cache: Path) -> str:
    """Return where helpfulness dialogues lie: the embedded ones, or the public set."""
    if data.world == "embedded":
        return str(world_folder(data.world_seed, cache) / "data" / "helpful")
    return data.helpful_path


def harmless_test_prompts(data: DataSettings, cache: Path, num: int) -> list[str]:
    """Return the first ``num`` held-out harmless prompts."""
    return list(_harmless_test_prompts(helpful_folder(data, cache), num))


def helpful_preferences(data_folder: Path) -> Sequence[Preference]:
    """Return the helpfulness pairs of an embedded world."""
    rows = load_rows(
        "helpful",
        str(data_folder / "data" / "helpful"),
        split="train",
        path_key="data.helpful_path",
    )
    return helpful_pairs(rows)


# Read once for all cells of a campaign, whatever else they set.
@lru_cache(maxsize=8)
def _preference_data(name: str, source: str, world: str | None) -> PreferenceData:
    train = load_rows(name, source, split="train", path_key="data.path")
    test = load_rows(name, source, split="test", path_key="data.path")
    content = f"{world}/{name}" if world else _content_key(name, source)
    return PreferenceData(
        key=f"{content}/roles-{roles_fingerprint()}",
        roles=by_role(safe_pairs(name, train), safe_pairs(name, test)),
    )


@lru_cache(maxsize=8)
def _restricted_test_prompts(name: str, source: str, num: int) -> tuple[str, ...]:
    rows = load_rows(name, source, split="test", path_key="data.path")
    return tuple(restricted_prompts(name, rows, num, key="evaluation.num_prompts"))


@lru_cache(maxsize=8)
def _harmless_test_prompts(source: str, num: int) -> tuple[str, ...]:
    rows = load_rows("helpful", source, split="test", path_key="data.helpful_path")
    return tuple(harmless_prompts(rows, num, key="evaluation.num_prompts"))


def _content_key(name: str, source: str) -> str:
    path = Path(source)
    if not path.exists():
        return f"{name}:{source}"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return f"{name}:{digest.hexdigest()[:16]}"
