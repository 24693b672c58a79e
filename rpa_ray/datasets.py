"""Which rows a cell works with: one place that knows where data lie and who may see which prompt."""

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


@lru_cache(maxsize=8)
def preference_data(data: DataSettings, cache: Path) -> PreferenceData:
    """Return the checked, paired and split preference data of a cell.

    Raises:
        DataError: a file is missing, broken, or not of the schema.
    """
    source = source_of(data, cache)
    train = load_rows(data.name, source, split="train", path_key="data.path")
    test = load_rows(data.name, source, split="test", path_key="data.path")
    return PreferenceData(
        key=f"{_content_key(data, source, cache)}/roles-{roles_fingerprint()}",
        roles=by_role(safe_pairs(data.name, train), safe_pairs(data.name, test)),
    )


def restricted_test_prompts(data: DataSettings, cache: Path, num: int) -> list[str]:
    """Return the first ``num`` held-out restricted prompts."""
    rows = load_rows(data.name, source_of(data, cache), split="test", path_key="data.path")
    return restricted_prompts(data.name, rows, num, key="evaluation.num_prompts")


def helpful_folder(data: DataSettings, cache: Path) -> str:
    """Return where helpfulness dialogues lie: the embedded ones, or the public set."""
    if data.world == "embedded":
        return str(world_folder(data.world_seed, cache) / "data" / "helpful")
    return data.helpful_path


def harmless_test_prompts(data: DataSettings, cache: Path, num: int) -> list[str]:
    """Return the first ``num`` held-out harmless prompts."""
    rows = load_rows(
        "helpful", helpful_folder(data, cache), split="test", path_key="data.helpful_path"
    )
    return harmless_prompts(rows, num, key="evaluation.num_prompts")


def helpful_preferences(data_folder: Path) -> Sequence[Preference]:
    """Return the helpfulness pairs of an embedded world."""
    rows = load_rows(
        "helpful",
        str(data_folder / "data" / "helpful"),
        split="train",
        path_key="data.helpful_path",
    )
    return helpful_pairs(rows)


def _content_key(data: DataSettings, source: str, cache: Path) -> str:
    if data.world == "embedded":
        return f"{world_folder(data.world_seed, cache).name}/{data.name}"
    path = Path(source)
    if not path.exists():
        return f"{data.name}:{source}"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return f"{data.name}:{digest.hexdigest()[:16]}"
