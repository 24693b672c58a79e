"""Reading the rows of a data set from a folder, a file or the Hugging Face Hub, and checking them.

The Hugging Face libraries are imported on first use: they are slow to import.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

from rpa_ray.data.conform import Origin, conform
from rpa_ray.data.errors import DataError, last_line
from rpa_ray.data.hub import RawRows, pinned, read_hub
from rpa_ray.data.schema import ASSISTANT, SCHEMAS, TEXT_KINDS, Row, Schema
from rpa_ray.data.split import is_held_out

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""The kinds of file that are read."""

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
    if name not in SCHEMAS:
        raise DataError.broken_rule(
            "data.name", f"be one of {sorted(SCHEMAS)}", name, "Choose the format of your data."
        )
    schema, names = SCHEMAS[name], columns or {}
    path = Path(source).expanduser()
    if path.exists():
        raw = _read_local(path, schema, names, split, path_key)
    else:
        raw = read_hub(
            pinned(source, path_key),
            schema,
            split=split,
            subset=subset,
            columns={names.get(column.name, column.name) for column in schema.columns},
            path_key=path_key,
        )
    origin = Origin(
        text=raw.text,
        path_key=path_key,
        names=names,
        max_broken_frac=0.0 if path.exists() else MAX_BROKEN_HUB_FRAC,
    )
    rows = conform(schema, raw.rows, origin)
    if raw.divided:
        rows = [row for row in rows if is_held_out(_request(row)) == (split == "test")]
    return rows


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
    if file.stat().st_size == 0:
        return []
    try:
        if file.suffix in (".jsonl", ".json"):
            return _read_json(file, path_key)
        return _read_table(file, texts)
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError.broken_rule(
            path_key,
            f"be a readable {file.suffix[1:]} file",
            f"{file.name}: {last_line(error)}",
            "Write the file again.",
        ) from error


def _read_table(file: Path, texts: Sequence[str]) -> list[Row]:
    """Return the rows of a parquet or CSV file; an empty CSV cell is an empty text, never a null.

    The columns in ``texts`` are texts in a CSV file whatever they look like: an answer may be "7".

    The library's copy of the file lives in a folder of its own and goes with it, so that a file
    that was written anew is never answered from an old copy.
    """
    import datasets
    import pyarrow.parquet

    # The library cannot read a parquet file without rows.
    if file.suffix == ".parquet" and pyarrow.parquet.read_metadata(file).num_rows == 0:
        return []
    datasets.disable_progress_bars()
    options: dict[str, Any] = {}
    if file.suffix == ".csv":
        options = {"keep_default_na": False, "converters": dict.fromkeys(texts, str)}
    with TemporaryDirectory(prefix="rpa-ray-data-") as cache:
        try:
            table = datasets.load_dataset(
                file.suffix[1:], data_files=str(file), split="train", cache_dir=cache, **options
            )
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(last_line(error.__cause__ or error)) from error
        rows: list[Row] = table.to_list()
    return rows


def _read_json(file: Path, path_key: str) -> list[Row]:
    """Return the objects of a JSON array, or of a file with one JSON object a line."""
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json" and text.lstrip().startswith("["):
        values = [(number, value) for number, value in enumerate(json.loads(text), start=1)]
        unit = "entry"
    else:
        lines = text.rstrip().split("\n")
        values = [(n, _parse_line(line, n, file, path_key)) for n, line in enumerate(lines, 1)]
        unit = "line"
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError.broken_rule(
                path_key,
                "hold JSON objects",
                f"{type(value).__name__} in {unit} {number} of {file.name}",
                "Write each row as an object of its columns.",
            )
    return [value for _, value in values]


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
