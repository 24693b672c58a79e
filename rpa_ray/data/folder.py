"""The rows of one split of a folder: a file for each split, or what the library ``datasets`` reads.

That is a data set as it is downloaded from the Hub, or as ``save_to_disk`` writes it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from rpa_ray.data.errors import DataError, require_size
from rpa_ray.data.files import SUFFIXES, RawRows, Wanted, kind_of, read_file, rows_of_table
from rpa_ray.data.schema import Row, Schema

if TYPE_CHECKING:
    from datasets import Dataset

_SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that ``save_to_disk`` wrote: of several splits, and of one."""


def read_folder(
    folder: Path, schema: Schema, *, split: str, subset: str | None, wanted: Wanted
) -> RawRows:
    """Return the rows of one split of a folder; those for training where it has no test.

    Raises:
        DataError: It has no training split, or files that cannot be read.
    """
    _require_files(folder, wanted.path_key)
    if all(_files_of(folder, name, wanted.path_key) for name in ("train", "test", split)):
        (file,) = _files_of(folder, split, wanted.path_key)
        return read_files([file], folder, wanted, divided=False)
    if any((folder / name).is_file() for name in _SAVED):
        tables = _saved(folder, wanted.path_key)
        name, divided = _split_of(folder, list(tables), schema, split, subset, wanted)
        return rows_of_table(tables[name], f"{folder} ({name})", wanted, divided=divided)
    if schema.hub_folder is not None and (folder / schema.hub_folder).is_dir():
        folder = folder / schema.hub_folder
    files = _downloaded(folder, wanted.path_key)
    name, divided = _split_of(folder, list(files), schema, split, subset, wanted)
    return read_files(files[name], folder, wanted, divided=divided)


class Splits(NamedTuple):
    """Names of the splits of a folder."""

    read: tuple[str, ...]
    """Training, and test where there is one: without, a part of the former is held out."""
    left: tuple[str, ...]


def splits_of(folder: Path, schema: Schema, *, subset: str | None, path_key: str) -> Splits:
    """Return which splits of a folder `read_folder` reads, and which it leaves.

    Raises:
        DataError: As there.
    """
    if all(_files_of(folder, name, path_key) for name in ("train", "test")):
        files = (file for file in folder.iterdir() if kind_of(file) in SUFFIXES)
        names = {file.name.partition(".")[0] for file in files}
    elif any((folder / name).is_file() for name in _SAVED):
        names = set(map(str, _saved(folder, path_key)))
    else:
        below = folder / (schema.hub_folder or "")
        names = set(_downloaded(below if below.is_dir() else folder, path_key))
    found = (schema.split_among(names, split, subset)[0] for split in ("train", "test"))
    read = tuple(dict.fromkeys(name for name in found if name is not None))
    return Splits(read=read, left=tuple(sorted(names.difference(read))))


def read_files(files: Sequence[Path], folder: Path, wanted: Wanted, *, divided: bool) -> RawRows:
    """Return the rows of files, one after the other, below a folder.

    Raises:
        DataError: One cannot be read, or together they are more than a process holds.
    """
    others = f" and {len(files) - 1} more, counted through" if len(files) > 1 else ""
    text = f"{os.path.relpath(files[0], folder)}{others}"
    rows: list[Row] = []
    columns: set[str] = set()
    num_bytes = 0
    for file in files:
        found = read_file(file, wanted)
        rows += found.rows
        columns.update(found.columns)
        num_bytes += found.num_bytes
        require_size(len(rows), num_bytes, text, wanted.path_key)
    return RawRows(rows=rows, text=text, divided=divided, columns=columns)


def _require_files(folder: Path, path_key: str) -> None:
    """Refuse names of data files that lead to none: the library passes over what is no file.

    Raises:
        DataError: There is one, outside of hidden folders.
    """
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
        if kind_of(path) in SUFFIXES and not (is_hidden or path.is_file() or path.is_dir()):
            raise DataError.broken_rule(
                path_key,
                "be a folder of files",
                f"{path}, a lost link, a pipe, a socket or a device",
                "Download or copy the file again, or remove the name.",
            )


def _files_of(folder: Path, split: str, path_key: str) -> list[Path]:
    """Return the file that bears the name of a split, if there is one.

    Raises:
        DataError: There are several.
    """
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [file for file in files if file.is_file()]
    if len(found) > 1:
        raise DataError.broken_rule(
            path_key,
            f"be a folder with exactly one of {[file.name for file in files]}",
            _content(folder),
            "Rename or remove files, or name one file.",
        )
    return found


def _split_of(
    folder: Path,
    names: Sequence[str],
    schema: Schema,
    split: str,
    subset: str | None,
    wanted: Wanted,
) -> tuple[str, bool]:
    """Return which of the splits there is read, and whether it is training and test in one."""
    name, divided = schema.split_among(names, split, subset)
    if name is None:
        raise DataError.broken_rule(
            wanted.path_key,
            f"be a folder with the split {schema.hub_splits('train', subset)[-1]!r}",
            f"the splits {sorted(map(str, names))} of {_content(folder)}",
            "Name one file, or a folder of the files of one split alone.",
        )
    return name, divided


def _saved(folder: Path, path_key: str) -> "Mapping[str, Dataset]":
    import datasets

    try:
        found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # whatever its files make the library do
        raise _unreadable(folder, error, path_key) from error
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _downloaded(folder: Path, path_key: str) -> dict[str, list[Path]]:
    """Return the files of every split, as the library finds them by name or by a README."""
    import datasets

    with TemporaryDirectory(prefix="rpa-ray-data-") as cache:
        try:
            builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
        except Exception as error:  # whatever its files make the library do
            raise _unreadable(folder, error, path_key) from error
    found = {
        str(split): [Path(os.path.normpath(file)) for file in files]
        for split, files in builder.config.data_files.items()
    }
    # A README may name files anywhere, which the folder's hash would not cover.
    root = folder.resolve()
    strange = [f for files in found.values() for f in files if not f.is_relative_to(root)]
    if strange:
        raise _unreadable(folder, ValueError(f"its README names {strange[0]}"), path_key)
    return found


def _unreadable(folder: Path, error: Exception, path_key: str) -> DataError:
    return DataError.broken_rule(
        path_key,
        "be a folder with a file for each split, or one that datasets.load_dataset or "
        "load_from_disk reads",
        f"{_content(folder)} ({' '.join(str(error).split())[:300]})",
        "Name one file, or a folder of the files of one split alone.",
    )


def _content(folder: Path) -> str:
    return f"{folder} with {sorted(file.name for file in folder.iterdir())[:20]}"
