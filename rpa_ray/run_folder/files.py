"""Files that are whole or absent, whenever a process or a machine dies; and logs of JSON lines.

A file is written beside its place under a name that nobody can guess, put on disk, and only then
takes its place: readers see the old one, the new one, or none.
"""

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeVar

from rpa_ray.run_folder.names import MAX_NAME_BYTES, cut_to_bytes

if TYPE_CHECKING:
    import pyarrow as pa

AGAIN = "Run it again: finished cells are kept."
"""The remedy where a file of a run is not what a run writes."""

JsonT = TypeVar("JsonT", dict[str, Any], list[Any])

logger = logging.getLogger(__name__)


class JsonLines:
    """A JSON Lines file that is appended to; a disabled one writes nothing (ranks above 0).

    What an earlier process wrote is kept until :meth:`rewind` says how much of it still counts; a
    last line that was cut short is not.
    """

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.num_lines = 0
        if not enabled:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        self.rewind(None)

    def rewind(self, num_lines: int | None) -> None:
        """Keep the first ``num_lines`` lines (None: all), and forget what was written after."""
        if self._file is None:
            return
        self._file.seek(0)
        lines = [line for line in self._file if line.endswith("\n")][:num_lines]
        self._file.truncate(len("".join(lines).encode()))
        self.num_lines = len(lines)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it; numbers that are not finite are written as null."""
        if self._file is None:
            return
        self._file.write(json.dumps(_finite(record, num_decimals=8)) + "\n")
        self._file.flush()
        self.num_lines += 1

    def sync(self) -> None:
        """Have every line on disk, so that a machine that dies keeps them too."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return how many lines there are, once they are on disk."""
        self.sync()
        return {"num_lines": self.num_lines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to as many lines as there were."""
        self.rewind(state["num_lines"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file; none where there is no file.

    A last line that a crash cut short is left out.

    Raises:
        ValueError: Another line is not JSON.
    """
    texts = path.read_bytes().splitlines() if path.is_file() else []
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise ValueError(
                    f"{path} line {number} must be JSON, got {_reason(error)}. {AGAIN}"
                ) from error
    return [line for line in lines if isinstance(line, dict)]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is whole or absent.

    Numbers that are not finite are written as null, the others with all their digits.
    """
    write_text(path, json.dumps(_finite(value), indent=1, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that is whole or absent.

    Halves of characters (surrogates), which UTF-8 does not have, are written as escapes.
    """
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write a table, compressed, that is whole or absent."""
    import pyarrow.parquet as pq

    with whole_file(path) as file:
        pq.write_table(table, file, compression="zstd", compression_level=12)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` once it is on disk, unless an error comes.

    A symbolic link of that name is replaced, and what it leads to is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _unguessable(path)
    try:
        # A new file or none: there may be links in a folder of others.
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def whole_folder(folder: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a folder to write into, which then appears as ``folder``, whole; an error leaves none.

    One that is there is replaced where asked. Otherwise it stays, as when another process was
    first: the contents of the two are equal.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _unguessable(folder)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        if replaces and folder.exists():
            # Aside first: deleted in its place, half of it could be left under its name.
            with TemporaryDirectory(prefix=".", dir=folder.parent) as aside:
                os.replace(folder, Path(aside) / folder.name)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(folder.parent)


def sync_tree(folder: Path) -> None:
    """Have a folder on disk with all that is in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have a file on disk, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems have no such call for a folder.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _unguessable(path: Path) -> Path:
    """Return a name beside a path that is not there yet."""
    token = f".{token_hex(8)}"
    return path.with_name(f".{cut_to_bytes(path.name, MAX_NAME_BYTES - 1 - len(token))}{token}")


def parse_json(path: Path) -> object:
    """Return the content of a JSON file.

    Raises:
        ValueError: The file is not JSON, or is nested more deeply than Python can read.
    """
    try:
        value: object = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path} must be nested less deeply, got more levels. {AGAIN}") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got {_reason(error)}. {AGAIN}") from error
    return value


def read_json(path: Path, kind: type[JsonT]) -> JsonT | None:
    """Return the object or list that a JSON file holds.

    None where there is no file; and where it is not whole, which is said once.
    """
    if not path.is_file():
        return None
    try:
        value = parse_json(path)
        if isinstance(value, kind):
            return value
        reason = f"{path} must hold a {kind.__name__}, got {type(value).__name__}."
    except ValueError as error:
        reason = str(error)
    say_once(f"{reason} It counts as not written.")
    return None


@cache
def say_once(text: str) -> None:
    """Log a warning the first time that this process comes to it."""
    logger.warning(text)


def _reason(error: Exception) -> str:
    """Return in a few words why a text is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.lower()} at line {error.lineno}"
    return str(error)


def _finite(value: Any, *, num_decimals: int | None = None) -> Any:
    """Return plain data with null for numbers that are not finite, and rounded where asked."""
    if isinstance(value, Mapping):
        return {key: _finite(inner, num_decimals=num_decimals) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner, num_decimals=num_decimals) for inner in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if num_decimals is None else round(value, num_decimals)
