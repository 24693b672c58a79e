"""The rows of one file or table: parquet, JSON or CSV, as it is or packed by gzip, or Arrow.

The Hugging Face libraries are imported on first use: they are slow to import.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from rpa_ray.data.arrow import require_sound, rows_of
from rpa_ray.data.csv_file import read_csv
from rpa_ray.data.errors import DataError, last_line, require_fetched, require_size, require_utf8
from rpa_ray.data.schema import Row

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""The kinds of file that are read."""
PACKED = ".gz"
"""Ends the name of a packed file, after its kind."""

MAX_ARRAY_BYTES = 256 * 2**20
"""Of a JSON array or object that holds all rows, which can only be read as a whole."""

_BATCH_ROWS = 1024
_BEGIN_CHARS = 1024
_BLOCK_BYTES = 2**20
# What the libraries raise for a file that is not what its name says.
_UNREADABLE = (
    *(ValueError, OSError, RecursionError, ArithmeticError, NotImplementedError),
    *(EOFError, zlib.error, csv.Error, pa.lib.ArrowException),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRows:
    """Rows as they were read."""

    rows: list[Row]
    text: str
    """Where they are from, in the words of an error."""
    divided: bool
    """True where they are training and test rows in one, to be divided by prompt."""
    columns: Collection[str] = ()
    """Columns there beyond those that were read."""
    left: Sequence[str] = ()
    """Splits there beyond the one that was read of the Hub; those of a folder a plan lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRows:
    """The rows of one file."""

    rows: list[Row]
    columns: Collection[str] = ()
    """Columns there beyond those that were read."""
    num_bytes: int
    """Unpacked, as far as the file tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What of a file is read."""

    columns: Collection[str]
    """The columns, by the file's names."""
    texts: Collection[str]
    """Those of them that are texts whatever they look like: an answer in a CSV may be "7"."""
    path_key: str
    """The config path that errors name."""


def kind_of(file: Path) -> str:
    """Return what a file's name says that it holds: its suffix before that of packing."""
    return Path(file.stem).suffix if file.suffix == PACKED else file.suffix


def read_file(file: Path, wanted: Wanted) -> FileRows:
    """Return the rows of a file, those of a table with the wanted columns alone.

    Raises:
        DataError: It is of another kind, larger than a process holds, or broken.
    """
    if kind_of(file) not in SUFFIXES:
        raise DataError.broken_rule(
            wanted.path_key,
            f"be a file of kind {list(SUFFIXES)}, each perhaps packed ({PACKED})",
            file.name,
            "Convert it.",
        )
    num_bytes = file.stat().st_size
    if num_bytes == 0:
        return FileRows(rows=[], num_bytes=0)
    require_size(0, num_bytes, file.name, wanted.path_key)
    try:
        require_fetched(file, wanted.path_key)
        with _unpacked(file, wanted.path_key) as whole:
            if whole.suffix == ".parquet":
                return _read_parquet(whole, wanted)
            read = _read_csv if whole.suffix == ".csv" else _read_json
            return FileRows(rows=read(whole, wanted), num_bytes=whole.stat().st_size)
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError.broken_rule(
            wanted.path_key,
            f"be a readable {kind_of(file)[1:]} file",
            f"{file.name}: {last_line(error)}",
            "Write the file again.",
        ) from error


@contextmanager
def _unpacked(file: Path, path_key: str) -> Iterator[Path]:
    """Give the file, or a copy without the packing that goes with the context."""
    if file.suffix != PACKED:
        yield file
        return
    with TemporaryDirectory(prefix="rpa-ray-data-") as folder:
        whole = Path(folder, file.stem)
        with gzip.open(file) as packed, whole.open("wb") as copy:
            while block := packed.read(_BLOCK_BYTES):
                copy.write(block)
                require_size(0, copy.tell(), file.name, path_key)
        yield whole


def _read_parquet(file: Path, wanted: Wanted) -> FileRows:
    rows: list[Row] = []
    num_bytes = 0
    with pq.ParquetFile(file) as table:
        footer = table.metadata
        told = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
        require_size(footer.num_rows, told, file.name, wanted.path_key)
        names = table.schema_arrow.names
        columns = [name for name in names if name in wanted.columns] or names
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            num_bytes += batch.nbytes
            require_size(len(rows), num_bytes, file.name, wanted.path_key)
            rows += rows_of(batch)
    return FileRows(rows=rows, columns=names, num_bytes=num_bytes)


def rows_of_table(table: "Dataset", text: str, wanted: Wanted, *, divided: bool) -> RawRows:
    """Return the wanted columns of a table of the library.

    Raises:
        DataError: It is more than a process holds, or damaged.
    """
    require_size(table.num_rows, table.data.nbytes, text, wanted.path_key)
    columns = table.column_names
    some = table.select_columns([name for name in columns if name in wanted.columns] or columns)
    try:
        require_sound(some.data.table)
    except ValueError as error:
        raise DataError.broken_rule(
            wanted.path_key,
            "hold tables that are whole",
            f"{text}, {last_line(error)}",
            "Write the data set again.",
        ) from error
    try:
        rows: list[Row] = some.to_list()
    except UnicodeDecodeError:
        rows = rows_of(some.with_format("arrow")[:])
    return RawRows(rows=rows, text=text, divided=divided, columns=columns)


def _read_csv(file: Path, wanted: Wanted) -> list[Row]:
    try:
        rows = read_csv(file, set(wanted.columns) - set(wanted.texts))
    except ValueError:
        require_utf8(file)
        raise
    require_size(len(rows), 0, file.name, wanted.path_key)
    return rows


def _read_json(file: Path, wanted: Wanted) -> list[Row]:
    """Return the objects of a JSON file: one a line, or all in an array or an object."""
    rows: list[Row] = []
    try:
        unit, values = _json_values(file, wanted)
        for number, value in values:
            if not isinstance(value, dict):
                raise DataError.broken_rule(
                    wanted.path_key,
                    "hold JSON objects",
                    f"{type(value).__name__} in {unit} {number} of {file.name}",
                    "Write each row as an object of its columns.",
                )
            rows.append(value)
            require_size(len(rows), 0, file.name, wanted.path_key)
    except UnicodeDecodeError:
        require_utf8(file)
        raise
    return rows


def _json_values(file: Path, wanted: Wanted) -> tuple[str, Iterator[tuple[int, object]]]:
    """Return what the values of a file are called, and the values with their numbers from 1."""
    if file.suffix == ".json" and _is_one_value(file):
        num_bytes = file.stat().st_size
        if num_bytes > MAX_ARRAY_BYTES:
            raise DataError.broken_rule(
                wanted.path_key,
                f"be a JSON array or object of at most {MAX_ARRAY_BYTES >> 20} MiB",
                f"{file.name} of {num_bytes >> 20} MiB",
                "Write one object a line, into a file .jsonl: that is read line by line.",
            )
        value = _loaded(file.read_text(encoding="utf-8-sig"))
        return "entry", enumerate(_rows_in(value, file, wanted), start=1)
    return "line", _lines(file, wanted.path_key)


def _is_one_value(file: Path) -> bool:
    """Return whether a file is one JSON value, rather than one object a line."""
    with file.open(encoding="utf-8-sig") as text:
        begins = text.read(_BEGIN_CHARS).lstrip()
        if begins.startswith("["):
            return True
        text.seek(0)
        lines = filter(str.strip, iter(lambda: text.readline(MAX_ARRAY_BYTES), ""))
        try:
            json.loads(next(lines, ""))
        except (ValueError, RecursionError):
            return begins.startswith("{")
        return next(lines, None) is None


def _rows_in(value: object, file: Path, wanted: Wanted) -> Sequence[object]:
    """Return the rows of an array, of an object with one array of rows, or of an object as one."""
    if isinstance(value, list):
        return value
    parts = value if isinstance(value, dict) and not value.keys() & set(wanted.columns) else {}
    arrays = {
        name: part
        for name, part in parts.items()
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part)
    }
    if len(arrays) > 1:
        raise DataError.broken_rule(
            wanted.path_key,
            "hold one array of rows",
            f"{sorted(arrays)} in {file.name}",
            "Write the rows of each into a file of its own, and those to train on into train.json "
            "and the held-out ones into test.json of one folder.",
        )
    return next(iter(arrays.values()), [value])


def _lines(file: Path, path_key: str) -> Iterator[tuple[int, object]]:
    """Yield the value of every line that is not empty, with its number."""
    with file.open(encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield number, _parse_line(line.rstrip(), number, file, path_key)


def _parse_line(line: str, number: int, file: Path, path_key: str) -> object:
    try:
        return _loaded(line)
    except json.JSONDecodeError as error:
        raise DataError.broken_rule(
            path_key,
            "hold one JSON object a line",
            f"{line[:40]!r} in line {number} of {file.name} ({error.msg})",
            "Mend or remove this line.",
        ) from error
    except ValueError as error:
        raise ValueError(f"{error} in line {number}") from error


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("arrays or objects nested without end") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError("a number of too many digits") from error
