"""Reading the rows of a data set from a folder, a file or the Hugging Face Hub, and checking them.

The Hugging Face libraries are imported on first use: they are slow to import.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

from rpa_ray.data.conform import Origin, conform
from rpa_ray.data.errors import DataError, last_line, require_size
from rpa_ray.data.hub import RawRows, pinned, read_hub
from rpa_ray.data.schema import ASSISTANT, SCHEMAS, TEXT_KINDS, Row, Schema
from rpa_ray.data.split import is_held_out

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""The kinds of file that are read."""

MAX_ARRAY_BYTES = 256 * 2**20
"""Of a JSON array, which can only be read as a whole."""

_BATCH_ROWS = 1024
_BEGIN_CHARS = 1024

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
            CSV); one such file, of which a fixed tenth of the prompts is the test split; or a Hub
            id ``owner/name[@revision]``. One without a test split is divided like a file.
        split: Which split.
        path_key: The config path that errors name, e.g. ``data.path``.
        columns: From a column of the schema to what the source calls it, where it differs.
        subset: Which of a Hub data set's training splits; None for the usual one.

    Raises:
        DataError: Nothing can be read there, or what can be does not follow the schema.
    """
    place = _Place(name=name, source=source, path_key=path_key, columns=columns, subset=subset)
    rows, divided = _checked(place, split)
    return _parts(rows)[split == "test"] if divided else rows


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
    train, divided = _checked(place, "train")
    return _parts(train) if divided else (train, _checked(place, "test")[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """The arguments of `load_rows` that both splits share."""

    name: str
    source: str
    path_key: str
    columns: Mapping[str, str] | None
    subset: str | None


def _checked(place: _Place, split: Split) -> tuple[list[Row], bool]:
    """Return rows that follow the schema, and whether they are those of both splits."""
    name, path_key = place.name, place.path_key
    if name not in SCHEMAS:
        raise DataError.broken_rule(
            "data.name", f"be one of {sorted(SCHEMAS)}", name, "Choose the format of your data."
        )
    schema, names = SCHEMAS[name], place.columns or {}
    path = Path(place.source).expanduser()
    if path.exists():
        raw = _read_local(path, schema, names, split, path_key)
    else:
        raw = read_hub(
            pinned(place.source, path_key),
            schema,
            split=split,
            subset=place.subset,
            columns={names.get(column.name, column.name) for column in schema.columns},
            path_key=path_key,
        )
    origin = Origin(
        text=raw.text,
        path_key=path_key,
        names=names,
        max_broken_frac=0.0 if path.exists() else MAX_BROKEN_HUB_FRAC,
    )
    return conform(schema, raw.rows, origin), raw.divided


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


def _read_local(
    path: Path, schema: Schema, names: Mapping[str, str], split: str, path_key: str
) -> RawRows:
    file = _file_of_split(path, split, path_key) if path.is_dir() else path
    texts = [column.name for column in schema.columns if column.kind in TEXT_KINDS]
    rows = _read_file(file, [names.get(name, name) for name in texts], path_key)
    return RawRows(rows=rows, text=file.name, divided=path.is_file())


def _file_of_split(folder: Path, split: str, path_key: str) -> Path:
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [file for file in files if file.is_file()]
    if len(found) != 1:
        there = sorted(file.name for file in folder.iterdir())[:20]
        raise DataError.broken_rule(
            path_key,
            f"be a folder with exactly one of {[file.name for file in files]}",
            f"{folder} with {there}",
            "Rename or remove files, or name one file.",
        )
    return found[0]


def _read_file(file: Path, texts: Sequence[str], path_key: str) -> list[Row]:
    if file.suffix not in SUFFIXES:
        raise DataError.broken_rule(
            path_key, f"be a file of kind {list(SUFFIXES)}", file.name, "Convert it."
        )
    num_bytes = file.stat().st_size
    if num_bytes == 0:
        return []
    require_size(0, num_bytes, file.name, path_key)
    try:
        match file.suffix:
            case ".parquet":
                return _read_parquet(file, path_key)
            case ".csv":
                return _read_csv(file, texts, path_key)
            case _:
                return _read_json(file, path_key)
    except DataError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DataError.broken_rule(
            path_key,
            f"be a readable {file.suffix[1:]} file",
            f"{file.name}: {last_line(error)}",
            "Write the file again.",
        ) from error


def _read_parquet(file: Path, path_key: str) -> list[Row]:
    """Return the rows of a parquet file; what it says of its size is looked at before any is read.

    A column may be packed to a thousandth, and the footer need not know: rows are counted unpacked.
    """
    import pyarrow.parquet as pq

    rows: list[Row] = []
    num_bytes = 0
    with pq.ParquetFile(file) as table:
        footer = table.metadata
        told = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
        require_size(footer.num_rows, told, file.name, path_key)
        for batch in table.iter_batches(batch_size=_BATCH_ROWS):
            num_bytes += batch.nbytes
            require_size(len(rows), num_bytes, file.name, path_key)
            rows += batch.to_pylist()
    return rows


def _read_csv(file: Path, texts: Sequence[str], path_key: str) -> list[Row]:
    """Return the rows of a CSV file; an empty cell is an empty text, never a null.

    The columns in ``texts`` are texts whatever they look like: an answer may be "7".

    The library's copy of the file lives in a folder of its own and goes with it, so that a file
    that was written anew is never answered from an old copy.
    """
    import datasets

    datasets.disable_progress_bars()
    options: dict[str, Any] = {"keep_default_na": False, "converters": dict.fromkeys(texts, str)}
    with TemporaryDirectory(prefix="rpa-ray-data-") as cache:
        try:
            table = datasets.load_dataset(
                "csv", data_files=str(file), split="train", cache_dir=cache, **options
            )
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(last_line(error.__cause__ or error)) from error
        require_size(table.num_rows, 0, file.name, path_key)
        rows: list[Row] = table.to_list()
    return rows


def _read_json(file: Path, path_key: str) -> list[Row]:
    """Return the objects of a JSON array, or of a file with one JSON object a line."""
    rows: list[Row] = []
    unit, values = _json_values(file, path_key)
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError.broken_rule(
                path_key,
                "hold JSON objects",
                f"{type(value).__name__} in {unit} {number} of {file.name}",
                "Write each row as an object of its columns.",
            )
        rows.append(value)
        require_size(len(rows), 0, file.name, path_key)
    return rows


def _json_values(file: Path, path_key: str) -> tuple[str, Iterator[tuple[int, object]]]:
    """Return what the values of a file are called, and the values with their numbers from 1."""
    if file.suffix == ".json":
        with file.open(encoding="utf-8-sig") as text:
            begins = text.read(_BEGIN_CHARS)
        if begins.lstrip().startswith("["):
            num_bytes = file.stat().st_size
            if num_bytes > MAX_ARRAY_BYTES:
                raise DataError.broken_rule(
                    path_key,
                    f"be a JSON array of at most {MAX_ARRAY_BYTES >> 20} MiB",
                    f"{file.name} of {num_bytes >> 20} MiB",
                    "Write one object a line, into a file .jsonl: that is read line by line.",
                )
            array = json.loads(file.read_text(encoding="utf-8-sig"))
            return "entry", enumerate(array, start=1)
    return "line", _lines(file, path_key)


def _lines(file: Path, path_key: str) -> Iterator[tuple[int, object]]:
    """Yield the value of every line with its number; empty lines may only stand at the end."""
    first_empty = 0
    with file.open(encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                first_empty = first_empty or number
                continue
            if first_empty:
                _parse_line("", first_empty, file, path_key)
            yield number, _parse_line(line.rstrip(), number, file, path_key)


def _parse_line(line: str, number: int, file: Path, path_key: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError.broken_rule(
            path_key,
            "hold one JSON object a line",
            f"{line[:40]!r} in line {number} of {file.name} ({error.msg})",
            "Mend or remove this line.",
        ) from error
