"""Pairs of answers in an Arrow file that is mapped: in memory once, whoever reads it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import overload

import pyarrow as pa

from rpa_ray.data.rows import SafePair

_COLUMNS = tuple(field.name for field in fields(SafePair))
_SCHEMA = pa.schema([(name, pa.string()) for name in _COLUMNS])
_BATCH_ROWS = 1024


class PairTable(Sequence[SafePair]):
    """The pairs of a file that `write_pairs` wrote; each is made when it is asked for.

    The file stays open, and may be deleted meanwhile.
    """

    def __init__(self, path: Path) -> None:
        # Not compressed: only then does Arrow read in place.
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> SafePair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SafePair, ...]: ...
    def __getitem__(self, index: int | slice) -> SafePair | tuple[SafePair, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _pair(column[index % len(self)].as_py() for column in self._table.columns)

    def __iter__(self) -> Iterator[SafePair]:
        for batch in self._table.to_batches(max_chunksize=_BATCH_ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _pair(row)


def write_pairs(path: Path, pairs: Sequence[SafePair]) -> None:
    """Write the pairs in their order."""
    with pa.ipc.new_file(str(path), _SCHEMA) as file:
        for begin in range(0, len(pairs), _BATCH_ROWS):
            some = pairs[begin : begin + _BATCH_ROWS]
            columns = ([getattr(pair, name) for pair in some] for name in _COLUMNS)
            arrays = [pa.array(column, pa.string()) for column in columns]
            file.write_batch(pa.record_batch(arrays, schema=_SCHEMA))


def _pair(row: Iterable[str | None]) -> SafePair:
    return SafePair(**dict(zip(_COLUMNS, row, strict=True)))  # type: ignore[arg-type]
