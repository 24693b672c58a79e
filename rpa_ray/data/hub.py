"""Data sets of the Hugging Face Hub: which commit an id names, and the rows of one split.

The Hugging Face libraries are imported on first use: they are slow to import.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from rpa_ray.data.errors import DataError, last_line
from rpa_ray.data.files import SUFFIXES, RawRows, Wanted, rows_of_table
from rpa_ray.data.schema import Schema
from rpa_ray.deadline import answer_within

HUB_LIMIT_S = 2.5
"""Longest wait for the Hub's first answer; what it sends afterwards may take its time."""

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class DataOutOfReach(DataError):
    """A data set that the Hub could not be asked for."""


def pinned(source: str, path_key: str) -> str:
    """Return a Hub id with the hash of the commit that its revision names, else the newest.

    The Hub is asked once a process, so that all rows of a run are of one commit. A folder or file
    comes back as it is, and so does an id where HF_HUB_OFFLINE forbids to ask.

    Raises:
        DataError: It is neither there nor a Hub id, or the Hub does not answer in time, or it does
            not give the data set out.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(source).expanduser().exists():
        return source
    repo, revision = split_id(source, path_key)
    if is_offline():
        return source
    try:
        return f"{repo}@{_commit(repo, revision)}"
    except (httpx.HTTPError, OSError, ValueError) as error:
        answer = error
    kind: type[DataError] = DataError
    if isinstance(answer, HfHubHTTPError | HFValidationError):
        rule, remedy = "that the Hub gives out", "Check id, revision and access rights."
    else:
        kind, rule = DataOutOfReach, "within reach"
        remedy = "Name a local folder or file, or set HF_HUB_OFFLINE=1 to read the local cache."
    raise kind.broken_rule(
        path_key, f"be a data set {rule}", f"{repo} ({last_line(answer)})", remedy
    ) from answer


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids to ask the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@contextmanager
def local_cache_alone() -> Iterator[None]:
    """Have the Hub asked for nothing in the meantime, as with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    # The library reads the variable once, where it is imported, and tries for minutes otherwise.
    before = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE", "0")
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = before


def split_id(source: str, path_key: str) -> tuple[str, str | None]:
    """Return the repository and the revision of a Hub id; None where it names no revision.

    Raises:
        DataError: It has another form.
    """
    match = HUB_ID.fullmatch(source)
    if match is None or Path(source).suffix in SUFFIXES:
        raise DataError.broken_rule(
            path_key,
            "be an existing folder or file, or a Hub id owner/name[@revision]",
            repr(source),
            "Check the spelling; paths are relative to where the command runs.",
        )
    return match["repo"], match["revision"]


def read_hub(
    source: str, schema: Schema, *, split: str, subset: str | None, wanted: Wanted
) -> RawRows:
    """Return the rows of one split of a Hub data set; those for training where it has no test.

    Args:
        source: A Hub id.
        schema: Knows the names of splits.
        split: ``train`` or ``test``.
        subset: Which training split; None for the usual one.
        wanted: The columns to read.

    Raises:
        DataError: It cannot be read, or has no such split.
    """
    import datasets

    repo, revision = split_id(source, wanted.path_key)
    try:
        tables = datasets.load_dataset(repo, data_dir=schema.hub_folder, revision=revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        kind = DataOutOfReach if isinstance(error, ConnectionError) else DataError
        raise kind.broken_rule(
            wanted.path_key,
            "be a Hub data set that can be read",
            f"{source}: {last_line(error)}",
            "Check id and revision, or download it and name the folder.",
        ) from error
    name, divided = schema.split_among(tables, split, subset)
    if name is None:
        raise DataError.broken_rule(
            wanted.path_key,
            f"be a Hub data set with the split {schema.hub_splits('train', subset)[0]!r}",
            f"{source} with {sorted(map(str, tables))}",
            "Check id and revision, or download it and name one file.",
        )
    raw = rows_of_table(tables[name], f"{source} ({name})", wanted, divided=divided)
    return replace(raw, left=sorted(set(tables) - {name}))


@lru_cache(maxsize=32)
def _commit(repo: str, revision: str | None) -> str:
    """Return the hash of the commit within :data:`HUB_LIMIT_S`, or an error of the Hub's library.

    One answer for all config paths that name the data set: rows of two commits do not meet.
    """
    from huggingface_hub import HfApi

    def ask() -> str:
        found = HfApi().dataset_info(repo, revision=revision, timeout=HUB_LIMIT_S)
        if found.sha is None:
            raise ValueError("it names no commit")
        return found.sha

    return answer_within(HUB_LIMIT_S, ask)
