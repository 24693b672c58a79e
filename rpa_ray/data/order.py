"""One stable random order, wherever rows are ranked, chosen or divided; what is one prompt."""

import hashlib
import heapq
from collections.abc import Sequence
from typing import Protocol, TypeVar


class HasId(Protocol):
    """A record with a stable id."""

    @property
    def id(self) -> str:
        """The id; equal ids mean equal rows."""
        ...


RowT = TypeVar("RowT", bound=HasId)


def normalise(prompt: str) -> str:
    """Return the prompt in lower case with white space collapsed."""
    return " ".join(prompt.lower().split())


def digest(*parts: object) -> str:
    """Return the sha256 (hex) of the parts; no two different lists of parts share a text."""
    joined = "".join(f"{len(text)}:{text}" for text in map(str, parts))
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()


def unit_interval(*parts: object) -> float:
    """Return the hash of the parts as a number in [0, 1)."""
    # 52 bits: the largest value stays below 1.0 when it becomes a float.
    return int(digest(*parts)[:13], 16) / 16**13


def hash_order(
    rows: Sequence[RowT], *, purpose: str, seed: int, num: int | None = None
) -> list[RowT]:
    """Return the first ``num`` rows, by default all, ranked by the hash of (purpose, seed, id).

    Each purpose has an order of its own: were flipping and drawing to share one, an attack would
    read all of its flipped rows first.
    """
    num = len(rows) if num is None else num
    # As sorted(rows)[:num], but no more rows are held than are returned.
    return heapq.nsmallest(num, rows, key=lambda row: digest(purpose, seed, row.id))


def digest_of_rows(rows: Sequence[HasId]) -> str:
    """Return one sha256 (hex) for a set of rows, whatever their order."""
    return digest(*sorted(row.id for row in rows))
