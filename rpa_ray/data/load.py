"""Reading the rows of a data set from a folder, a file or the Hub, and checking them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rpa_ray.data.conform import Origin, conform
from rpa_ray.data.errors import DataError
from rpa_ray.data.files import RawRows, Wanted
from rpa_ray.data.folder import read_files, read_folder
from rpa_ray.data.formats import FORMATS, SCHEMAS
from rpa_ray.data.hub import pinned, read_hub
from rpa_ray.data.schema import ASSISTANT, TEXT_KINDS, Row
from rpa_ray.data.split import is_held_out
from rpa_ray.run_folder.files import say_once

MAX_BROKEN_HUB_FRAC = 0.01
"""Share of a Hub data set's rows that may be broken: nobody can mend them there."""

Split: TypeAlias = Literal["train", "test", "validation"]
"""The embedded sets alone have a file of each; of others ``test`` holds ``validation`` too."""


def load_rows(
    name: str,
    source: str,
    *,
    split: Split,
    path_key: str,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
) -> list[Row]:
    """Return the checked rows of one split, with the columns of the schema only.

    Args:
        name: A key of :data:`SCHEMAS`.
        source: A folder that holds ``train`` and ``test`` as one file each (parquet, JSONL, JSON or
            CSV), or as the library ``datasets`` reads or saves them; one such file, of which a
            fixed tenth of the prompts is the test split; or a Hub id ``owner/name[@revision]``.
            One without a test split is divided like a file.
        split: Which split.
        path_key: The config path that errors name, e.g. ``data.path``.
        columns: From a column of the schema to what the source calls it, where it differs.
        subset: Which of a Hub data set's training splits; None for the usual one.

    Raises:
        DataError: Nothing can be read there, or what can be does not follow the schema.
    """
    place = _Place(name=name, source=source, path_key=path_key, columns=columns, subset=subset)
    rows, raw = _checked(place, split)
    return _parts(rows)[split == "test"] if raw.divided else rows


def load_train_and_test(
    name: str,
    source: str,
    *,
    path_key: str,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
) -> tuple[list[Row], list[Row]]:
    """Return what `load_rows` does of both splits; what holds both is read once.

    Raises:
        DataError: As there.
    """
    place = _Place(name=name, source=source, path_key=path_key, columns=columns, subset=subset)
    train, raw = _checked(place, "train")
    return _parts(train) if raw.divided else (train, _checked(place, "test")[0])


def load_in_order(
    name: str,
    source: str,
    *,
    path_key: str,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
) -> tuple[list[Row], str]:
    """Return the rows for training as they lie there, and where that is in the words of an error.

    Where training and test rows are one, these are both. The arguments are those of `load_rows`.

    Raises:
        DataError: As there.
    """
    place = _Place(name=name, source=source, path_key=path_key, columns=columns, subset=subset)
    rows, raw = _checked(place, "train")
    return rows, raw.text


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """The arguments of `load_rows` that both splits share."""

    name: str
    source: str
    path_key: str
    columns: Mapping[str, str] | None
    subset: str | None


def _checked(place: _Place, split: Split) -> tuple[list[Row], RawRows]:
    """Return rows that follow the schema, and those that they were read as."""
    name, path_key = place.name, place.path_key
    if name not in SCHEMAS:
        raise DataError.broken_rule(
            "data.name", f"be one of {sorted(SCHEMAS)}", name, "Choose the format of your data."
        )
    schema, names = SCHEMAS[name], place.columns or {}
    path = Path(place.source).expanduser()
    theirs = {column: names.get(column.name, column.name) for column in schema.columns}
    wanted = Wanted(
        columns=set(theirs.values()),
        texts=[theirs[column] for column in schema.columns if column.kind in TEXT_KINDS],
        path_key=path_key,
    )
    if path.is_dir():
        raw = read_folder(path, schema, split=split, subset=place.subset, wanted=wanted)
    elif path.exists():
        if not path.is_file():
            raise DataError.broken_rule(
                path_key,
                "be a file, a folder or a Hub id",
                f"{place.source}, a pipe, a socket or a device",
                "Write the rows into a file.",
            )
        raw = read_files([path], path.parent, wanted, divided=True)
    else:
        source = pinned(place.source, path_key)
        raw = read_hub(source, schema, split=split, subset=place.subset, wanted=wanted)
    if raw.divided and raw.left:
        say_once(
            f"{path_key} has no split for testing: a tenth of the prompts of {raw.text} are held "
            f"out, and the splits {raw.left} are not read."
        )
    origin = Origin(
        text=raw.text,
        path_key=path_key,
        columns=raw.columns,
        names=names,
        max_broken_frac=0.0 if path.exists() else MAX_BROKEN_HUB_FRAC,
        formats=FORMATS if path_key == "data.path" and not names else {},
    )
    return conform(schema, raw.rows, origin), raw


def _parts(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the training rows and the test rows of those that are both."""
    train: list[Row] = []
    test: list[Row] = []
    for row in rows:
        (test if is_held_out(_request(row)) else train).append(row)
    return train, test


def _request(row: Row) -> str:
    """Return the prompt of a row; that of a dialogue ends with its last human turn."""
    return str(row["prompt"]) if "prompt" in row else str(row["chosen"]).rpartition(ASSISTANT)[0]
