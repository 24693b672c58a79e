"""The error that a user's data can cause, and what every reader refuses alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MAX_ROWS = 10_000_000
MAX_BYTES = 8 * 2**30
"""Of a file, and of its rows where they are packed in it: reading holds them in memory."""

_POINTER = b"version https://git-lfs"


class DataError(ValueError):
    """Data that cannot be used: names where it comes from, the rule, what is there, the remedy.

    ``fitting`` holds the setting, by its config path, under which the data could be used.
    """

    fitting: Mapping[str, Any] = {}

    @classmethod
    def broken_rule(
        cls,
        key: str,
        rule: str,
        got: object,
        remedy: str,
        *,
        fitting: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the error for the config path ``key``; ``got`` is printed as it is."""
        error = cls(f"{key} must {rule}, got {got}. {remedy}")
        error.fitting = fitting or {}
        return error


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a value of a row; stands in its place until the rows are checked."""

    found: str
    """In the words of an error."""
    remedy: str = ""
    """What mends it, where that is more than to mend the row."""


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, cut to 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200]


def require_size(num_rows: int, num_bytes: int, text: str, path_key: str) -> None:
    """Refuse a data set that no process could hold.

    Args:
        num_rows: Rows as far as they are known.
        num_bytes: Bytes of them, unpacked.
        text: The file, or the Hub id and its split.
        path_key: The config path that the error names.

    Raises:
        DataError: There are more rows or bytes than the limits.
    """
    if num_rows > MAX_ROWS or num_bytes > MAX_BYTES:
        raise DataError.broken_rule(
            path_key,
            f"hold at most {MAX_ROWS:,} rows and {MAX_BYTES / 2**30:g} GiB unpacked",
            f"{num_rows:,} rows and {num_bytes / 2**30:.1f} GiB in {text}",
            "Take a part of it.",
        )


def require_fetched(file: Path, path_key: str) -> None:
    """Refuse what Git leaves in place of a large file that was not fetched.

    Raises:
        DataError: It is a pointer of Git LFS.
        OSError: It cannot be opened.
    """
    with file.open("rb") as begin:
        if begin.read(len(_POINTER)) == _POINTER:
            raise DataError.broken_rule(
                path_key,
                "be the file itself",
                f"{file.name}, a pointer of Git LFS",
                "Fetch it with `git lfs pull`, or download the data set with `hf download`.",
            )


def require_utf8(file: Path) -> None:
    """Refuse a text file by its first line that is not UTF-8.

    Raises:
        ValueError: There is one.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} is not UTF-8: {error.reason}") from error
