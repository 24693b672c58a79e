"""The rows of a CSV file, whose values are texts save those of flags and choices."""

import csv
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rpa_ray.data.errors import DataError, last_line, require_size, require_utf8

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_MAX_DIGITS = 18
"""So many always fit into the 64 bits of a whole number."""


def read_csv(
    file: Path, *, columns: Collection[str], texts: Collection[str], path_key: str
) -> list[dict[str, object]]:
    """Return the rows of a CSV file; an empty cell is an empty text, never a null.

    The library's copy of the file lives in a folder of its own and goes with it, so that a file
    that was written anew is never answered from an old copy.

    Args:
        file: What is read, whole.
        columns: The columns that are wanted, by the file's names.
        texts: Those of them that are texts whatever they look like.
        path_key: The config path that errors name.

    Raises:
        DataError: It is not written with commas, or its rows are longer than its first line.
        ValueError: It is broken otherwise.
    """
    import datasets

    datasets.disable_progress_bars()
    header = _header(file)
    _require_commas(header, file, path_key)
    numbers = set(columns) - set(texts)
    converters = dict.fromkeys((name for name in header if name not in numbers), str)
    options: dict[str, Any] = {"keep_default_na": False, "converters": converters}
    with TemporaryDirectory(prefix="rpa-ray-data-") as cache:
        try:
            table = datasets.load_dataset(
                "csv", data_files=str(file), split="train", cache_dir=cache, **options
            )
        except datasets.exceptions.DatasetsError as error:
            require_utf8(file)
            _require_whole_numbers(file, numbers)
            raise ValueError(last_line(error.__cause__ or error)) from error
        require_size(table.num_rows, 0, file.name, path_key)
        # What the header has no name for is taken for an index, and the names for what follows it.
        if len(table.column_names) > len(header):
            raise DataError.broken_rule(
                path_key,
                "hold rows of as many values as its first line has names",
                f"longer ones in {file.name}",
                'Put texts that hold a comma in quotes ("), and end no line with a comma.',
            )
        rows: list[dict[str, object]] = table.to_list()
    return rows


def _header(file: Path) -> list[str]:
    """Return the names in the first line that is not empty."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            return next(filter(None, csv.reader(text)), [])
    except UnicodeDecodeError:
        require_utf8(file)
        raise


def _require_commas(header: list[str], file: Path, path_key: str) -> None:
    found = [name for sign, name in _OTHER_SEPARATORS.items() if sign in "".join(header)]
    if len(header) == 1 and found:
        raise DataError.broken_rule(
            path_key,
            "be written with commas where it is a CSV file",
            f"{file.name} with {found[0]}",
            "Write it with commas, and texts that hold a comma in quotes, or as JSONL.",
        )


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
