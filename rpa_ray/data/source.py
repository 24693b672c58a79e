"""Where preference data come from: what decides which rows there are, and what names them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from rpa_ray.config import ConfigError, DataSettings
from rpa_ray.config.errors import nearest
from rpa_ray.data.errors import DataError
from rpa_ray.data.folder import Splits, splits_of
from rpa_ray.data.formats import FORMATS, SCHEMAS
from rpa_ray.data.hub import pinned, split_id
from rpa_ray.data.load import Split, load_in_order, load_rows, load_train_and_test
from rpa_ray.data.order import digest
from rpa_ray.data.rows import SafePair
from rpa_ray.data.schema import Row

UNPINNED = "unpinned (HF_HUB_OFFLINE)"
"""In place of the commit of a Hub data set that names none, where the Hub cannot be asked."""

_BLOCK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where rows come from, as a run folder records it."""

    source: str
    """``embedded/<set>``, the path, or the Hub id."""
    revision: str
    """The world, ``sha256:<hash of the files>``, or the commit on the Hub."""


class _Options(TypedDict):
    path_key: str
    columns: dict[str, str]
    subset: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """What decides which rows are read; hashable, unlike the settings."""

    name: str
    place: str
    """Folder, file or Hub id."""
    world: str | None
    """Fingerprint of the embedded world; None for real data."""
    columns: tuple[tuple[str, str], ...] = ()
    subset: str | None = None
    path_key: str = "data.path"
    """The config path that errors name."""

    def rows(self, split: Split) -> list[Row]:
        """Return the checked rows of a split."""
        return load_rows(self.name, self.place, split=split, **self._options())

    def train_and_test(self) -> tuple[list[Row], list[Row]]:
        """Return the checked rows of both splits; what holds both is read once."""
        return load_train_and_test(self.name, self.place, **self._options())

    def where(self, pairs: Sequence[SafePair]) -> str:
        """Return from which rows pairs are, in the words of an error; nothing where none has them.

        Rows are told by the prompt and the unsafe answer. Those of the Hub may have been left out,
        so that nobody can count them.
        """
        if not Path(self.place).expanduser().exists():
            return ""
        rows, text = load_in_order(self.name, self.place, **self._options())
        numbers = [
            number
            for number, row in enumerate(rows, start=1)
            if any(_is_from(row, pair) for pair in pairs)
        ]
        return f" (rows {', '.join(map(str, numbers))} of {text})" if numbers else ""

    def splits(self) -> Splits:
        """Return which splits of a folder are read and which are left."""
        folder, schema = Path(self.place).expanduser(), SCHEMAS[self.name]
        return splits_of(folder, schema, subset=self.subset, path_key=self.path_key)

    def _options(self) -> _Options:
        return {"path_key": self.path_key, "columns": dict(self.columns), "subset": self.subset}

    def provenance(self) -> Provenance:
        """Return where the rows come from."""
        return provenance_of(self.name, self.place, self.world, path_key=self.path_key)

    def key(self) -> str:
        """Return what names the content of the rows."""
        found = self.provenance()
        if self.world is not None:
            return f"{self.world}/{self.name}"
        if found.revision.startswith("sha256:"):
            parts = [f"{self.name}:{found.revision.removeprefix('sha256:')[:16]}"]
        else:
            parts = [f"{self.name}:{found.source}@{found.revision}"]
            if SCHEMAS[self.name].hub_subsets:
                parts.append(str(self.subset))
        if self.columns:
            parts.append(f"columns-{digest(*self.columns)[:8]}")
        return "/".join(parts)


def check_source(data: DataSettings) -> None:
    """Refuse settings of a data source that contradict each other; reads no data.

    Raises:
        ConfigError: with the key that has to change.
    """
    defaults = DataSettings()
    local = data.path is not None and Path(data.path).expanduser().exists()
    if data.world == "embedded":
        if not FORMATS[data.name].embedded:
            raise ConfigError(
                "data.world",
                f"be real where data.name is {data.name}",
                data.world,
                "Set data.world: real, and name your file in data.path.",
                fitting={"data.world": "real"},
            )
        for key in ("path", "safety_path", "columns", "subset"):
            if (value := getattr(data, key)) != getattr(defaults, key):
                raise ConfigError(
                    f"data.{key}",
                    "be left out where data.world is embedded",
                    value,
                    "Set data.world: real to read it.",
                    fitting={"data.world": "real"},
                )
    elif data.path is None and FORMATS[data.name].hub_id is None:
        raise ConfigError(
            "data.path",
            f"be given where data.name is {data.name}",
            None,
            "Name a folder, a file or a Hub id.",
        )
    if data.subset != defaults.subset and (local or not FORMATS[data.name].hub_subsets):
        raise ConfigError(
            "data.subset",
            "be left out except for beavertails on the Hub",
            data.subset,
            "Remove it: all rows of the source are read.",
        )
    if data.pairs != defaults.pairs and FORMATS[data.name].all_pairs is None:
        raise ConfigError(
            "data.pairs",
            f"be {defaults.pairs} where data.name is {data.name}",
            data.pairs,
            "Only safe_rlhf says which of two safe or two unsafe answers is safer.",
        )
    _check_safe_answers(data)
    _check_columns(data)


def _check_safe_answers(data: DataSettings) -> None:
    defaults = DataSettings()
    if data.safe_answers == "dataset":
        if data.refusals != defaults.refusals:
            raise ConfigError(
                "data.refusals",
                "be left out where data.safe_answers is dataset",
                data.refusals.model_dump(exclude_defaults=True),
                "Set data.safe_answers: generated, or remove it.",
            )
    elif data.pairs != defaults.pairs and data.safety_path is None:
        raise ConfigError(
            "data.safe_answers",
            "be dataset where data.pairs is all_pairs and no data.safety_path is given",
            data.safe_answers,
            "A refusal is the safe answer of a pair with an unsafe one.",
        )


def _check_columns(data: DataSettings) -> None:
    known = [column.name for column in FORMATS[data.name].columns]
    for name in data.columns:
        if name not in known:
            raise ConfigError("data.columns", f"map columns of {known}", name, nearest(name, known))
    taken: dict[str, str] = {}
    for name in known:
        theirs = data.columns.get(name, name)
        if theirs in taken:
            wrong, other = (name, taken[theirs]) if name in data.columns else (taken[theirs], name)
            raise ConfigError(
                f"data.columns.{wrong}",
                f"name a column of its own, other than that of {other!r}",
                theirs,
                "Name another column, or map the other one too.",
            )
        taken[theirs] = name


def _is_from(row: Row, pair: SafePair) -> bool:
    # Posts of the summarisation task end otherwise in pairs, and summaries begin so.
    return pair.prompt.startswith(str(row["prompt"]).rstrip()) and any(
        str(value).strip().endswith(pair.unsafe.strip()) for value in row.values()
    )


def provenance_of(name: str, place: str, world: str | None, *, path_key: str) -> Provenance:
    """Return where the rows of a data set come from.

    Args:
        name: Name of the format.
        place: Folder, file or Hub id.
        world: Fingerprint of the embedded world; None for real data.
        path_key: The config path that errors name.

    Raises:
        DataError: it cannot be read, or the Hub does not say which commit it names.
    """
    if world is not None:
        return Provenance(source=f"embedded/{name}", revision=world)
    path = Path(place).expanduser()
    if path.exists():
        try:
            return Provenance(source=place, revision=f"sha256:{_hash_of_files(path)}")
        except OSError as error:
            raise DataError.broken_rule(
                path_key,
                "be files that can be read",
                f"{error.filename or path} ({error.strerror})",
                "Check the file and its permissions.",
            ) from error
    repo, revision = split_id(pinned(place, path_key), path_key)
    return Provenance(source=repo, revision=revision or UNPINNED)


def _hash_of_files(path: Path) -> str:
    """Return the hash of a file's content; of a folder's, with the name and size of every file."""
    if path.is_file():
        return _hash_of((_stamp(path),))
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    # What is hidden no data set is read from; downloads keep their records there.
    shown = [f for f in files if not any(part[0] == "." for part in f.relative_to(path).parts)]
    sizes = [(file.relative_to(path).as_posix(), file.stat().st_size) for file in shown]
    return digest(sizes, _hash_of(tuple(map(_stamp, shown))))


def _stamp(file: Path) -> tuple[Path, int, int]:
    at = file.stat()
    return file, at.st_size, at.st_mtime_ns


@lru_cache(maxsize=64)
def _hash_of(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the hash of files given with their sizes in bytes and times of change."""
    sha256 = hashlib.sha256()
    for path, _, _ in stamps:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                sha256.update(block)
    return sha256.hexdigest()
