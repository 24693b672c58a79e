"""The rows of a CSV file, whose values are texts save those of flags and choices."""

import csv
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_MAX_DIGITS = 18
"""So many always fit into the 64 bits of a whole number."""


def read_csv(file: Path, numbers: Collection[str]) -> list[dict[str, object]]:
    """Return the rows of a CSV file; an empty cell is an empty text, never a null.

    The library's copy of the file lives in a folder of its own and goes with it, so that a file
    that was written anew is never answered from an old copy.

    Args:
        file: What is read, whole.
        numbers: The columns that may hold numbers; what all others hold is text.

    Raises:
        ValueError: It is broken, not written with commas, or has rows longer than its first line.
    """
    import datasets

    datasets.disable_progress_bars()
    header = _header(file)
    texts = dict.fromkeys((name for name in header if name not in numbers), str)
    options: dict[str, Any] = {"keep_default_na": False, "converters": texts}
    with TemporaryDirectory(prefix="rpa-ray-data-") as cache:
        try:
            table = datasets.load_dataset(
                "csv", data_files=str(file), split="train", cache_dir=cache, **options
            )
        except datasets.exceptions.DatasetsError as error:
            _require_whole_numbers(file, numbers)
            raise ValueError(str(error.__cause__ or error)) from error
        # What the header has no name for is taken for an index, and the names for what follows it.
        if len(table.column_names) > len(header):
            raise ValueError(
                "rows of more values than its first line has names (a text that holds a comma "
                "stands in quotes)"
            )
        rows: list[dict[str, object]] = table.to_list()
    return rows


def _header(file: Path) -> list[str]:
    """Return the names in the first line that is not empty."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        header: list[str] = next(filter(None, csv.reader(text)), [])
    found = [name for sign, name in _OTHER_SEPARATORS.items() if sign in "".join(header)]
    if len(header) == 1 and found:
        raise ValueError(f"{found[0]} between its columns, where a CSV file has commas")
    return header


def _require_whole_numbers(file: Path, numbers: Collection[str]) -> None:
    """Refuse the first line whose whole number is longer than any column of numbers can hold."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        for row in rows:
            for name in numbers:
                digits = (row.get(name) or "").strip().lstrip("+-")
                if digits.isdecimal() and len(digits) > _MAX_DIGITS:
                    raise ValueError(
                        f"a number of too many digits ({len(digits)}) in line {rows.line_num}"
                    )
