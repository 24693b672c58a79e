"""Reading the rows of a data set from a folder, a file or the Hugging Face Hub, and checking them.

The Hugging Face libraries are imported on first use: they are slow to import.
"""

import json
import os
import re
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

from rpa_ray.data.errors import DataError
from rpa_ray.data.schema import ASSISTANT, SCHEMAS, Row, Schema, check_rows
from rpa_ray.data.split import is_held_out

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""The kinds of file that are read."""

HUB_LIMIT_S = 2.5
"""Longest wait for the Hub's first answer; what it sends afterwards may take its time."""

Split: TypeAlias = Literal["train", "test"]

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def load_rows(name: str, source: str, *, split: Split, path_key: str) -> list[Row]:
    """Return the checked rows of one split, with the columns of the schema only.

    Args:
        name: A key of :data:`SCHEMAS`.
        source: A folder that holds ``train`` and ``test`` as one file each (parquet, JSONL, JSON or
            CSV); one such file, of which a fixed tenth of the prompts is the test split; or a Hub
            id ``owner/name``, better with the revision pinned: ``owner/name@revision``.
        split: Which split.
        path_key: The config path that errors name, e.g. ``data.path``.

    Raises:
        DataError: Nothing can be read there, or what can be does not follow the schema.
    """
    if name not in SCHEMAS:
        raise DataError.broken_rule(
            "data.name", f"be one of {sorted(SCHEMAS)}", name, "Choose the format of your data."
        )
    schema, path = SCHEMAS[name], Path(source).expanduser()
    if path.exists():
        file = _file_of_split(path, split, path_key) if path.is_dir() else path
        rows, origin = _read_file(file, path_key), file.name
    else:
        rows, origin = _read_hub(schema, source, split, path_key), f"{source} ({split})"
    check_rows(schema, rows, origin=origin, path_key=path_key)
    columns = [column.name for column in schema.columns]
    rows = [{column: row[column] for column in columns if column in row} for row in rows]
    if path.is_file():
        rows = [row for row in rows if is_held_out(_request(row)) == (split == "test")]
    return rows


def _request(row: Row) -> str:
    """Return the prompt of a row; that of a dialogue ends with its last human turn."""
    return str(row["prompt"]) if "prompt" in row else str(row["chosen"]).rpartition(ASSISTANT)[0]


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


def _read_file(file: Path, path_key: str) -> list[Row]:
    if file.suffix not in SUFFIXES:
        raise DataError.broken_rule(
            path_key, f"be a file of kind {list(SUFFIXES)}", file.name, "Convert it."
        )
    if file.stat().st_size == 0:
        return []
    try:
        if file.suffix in (".jsonl", ".json"):
            return _read_json(file, path_key)
        return _read_table(file)
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError.broken_rule(
            path_key,
            f"be a readable {file.suffix[1:]} file",
            f"{file.name}: {_last_line(error)}",
            "Write the file again.",
        ) from error


def _read_table(file: Path) -> list[Row]:
    """Return the rows of a parquet or CSV file; an empty CSV cell is an empty text, never a null.

    The library's copy of the file lives in a folder of its own and goes with it, so that a file
    that was written anew is never answered from an old copy.
    """
    import datasets
    import pyarrow.parquet

    # The library cannot read a parquet file without rows.
    if file.suffix == ".parquet" and pyarrow.parquet.read_metadata(file).num_rows == 0:
        return []
    datasets.disable_progress_bars()
    options = {"keep_default_na": False} if file.suffix == ".csv" else {}
    with TemporaryDirectory(prefix="rpa-ray-data-") as cache:
        try:
            table = datasets.load_dataset(
                file.suffix[1:], data_files=str(file), split="train", cache_dir=cache, **options
            )
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(_last_line(error.__cause__ or error)) from error
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


def _read_hub(schema: Schema, source: str, split: str, path_key: str) -> list[Row]:
    match = _HUB_ID.fullmatch(source)
    if match is None or Path(source).suffix in SUFFIXES:
        raise DataError.broken_rule(
            path_key,
            "be an existing folder or file, or a Hub id owner/name[@revision]",
            repr(source),
            "Check the spelling; paths are relative to where the command runs.",
        )
    repo, revision = match["repo"], match["revision"]
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in {"1", "ON", "YES", "TRUE"}:
        _require_hub(repo, revision, path_key)
    import datasets

    try:
        table = datasets.load_dataset(
            repo, data_dir=schema.hub_folder, split=schema.hub_splits[split], revision=revision
        )
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise DataError.broken_rule(
            path_key,
            f"be a Hub data set with the split {schema.hub_splits[split]!r}",
            f"{source}: {_last_line(error)}",
            "Check id and revision, or download it and name the folder.",
        ) from error
    known = [column.name for column in schema.columns]
    rows: list[Row] = table.select_columns(
        [column for column in table.column_names if column in known] or table.column_names
    ).to_list()
    return rows


def _require_hub(repo: str, revision: str | None, path_key: str) -> None:
    """Return if the Hub knows the data set; refuse within :data:`HUB_LIMIT_S` if it cannot tell.

    The library's own limits do not bound name resolution and add up over its retries.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(repo, revision=revision, timeout=HUB_LIMIT_S)
            outcome.append(None)
        except (httpx.HTTPError, OSError, ValueError) as error:
            outcome.append(error)

    # A daemon thread: one that still waits for a name server does not hold up the exit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_LIMIT_S)
    if outcome == [None]:
        return
    error = outcome[0] if outcome else None
    reason = f"no answer within {HUB_LIMIT_S:g} s" if error is None else _last_line(error)
    if isinstance(error, HfHubHTTPError | HFValidationError):
        rule, remedy = "that the Hub gives out", "Check id, revision and access rights."
    else:
        rule = "within reach"
        remedy = "Name a local folder or file, or set HF_HUB_OFFLINE=1 to read the local cache."
    raise DataError.broken_rule(
        path_key, f"be a data set {rule}", f"{repo} ({reason})", remedy
    ) from error


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
