"""Where measured values go: one JSON line a step, flushed, so that nothing computed is lost."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pyarrow as pa


class JsonLines:
    """A JSON Lines file that is appended to; a disabled one writes nothing (ranks above 0).

    What an earlier process wrote is kept until :meth:`rewind` says how much of it still counts.
    """

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.num_lines = 0
        if not enabled:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        self._file.seek(0)
        self.num_lines = sum(line.endswith("\n") for line in self._file)

    def rewind(self, num_lines: int) -> None:
        """Keep the first ``num_lines`` lines, and forget what was written after them."""
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

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return how many lines there are."""
        return {"num_lines": self.num_lines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to as many lines as there were."""
        self.rewind(state["num_lines"])


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece: readers see the old one or the new one.

    Numbers that are not finite are written as null, the others with all their digits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite(value), indent=1, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 in one piece: readers see the old one or the new one.

    A symbolic link of that name is replaced, and what it leads to is left alone. Halves of
    characters (surrogates), which UTF-8 does not have, are written as escapes.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    # A new file or none: also of the partial one there may be a link in a folder of others.
    with partial.open("xb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file holds; None where there is no file."""
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write a table in one piece, compressed: readers see the old file or the new one."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, partial, compression="zstd", compression_level=12)
    os.replace(partial, path)


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
