"""Pairs whose two answers a model reads as one, cut or not: they carry no preference."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeAlias

from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import Answered, SafePair

Encode: TypeAlias = Callable[[Answered], Sequence[int]]
"""The ids of a prompt with its answer, whole."""

_BEGIN_CHARS = 60
_NUM_NAMED = 10
"""An error names the rows of at most so many pairs."""


def sides(pair: SafePair) -> tuple[Answered, Answered]:
    """Return the prompt with the safe answer, and with the unsafe one."""
    return (
        Answered(prompt=pair.prompt, answer=pair.safe),
        Answered(prompt=pair.prompt, answer=pair.unsafe),
    )


def require_told_apart(
    pairs: Sequence[SafePair],
    read: Iterable[tuple[Sequence[int], Sequence[int]]],
    encode: Encode,
    *,
    where: Callable[[Sequence[SafePair]], str],
    max_tokens: int,
    key: str,
) -> None:
    """Refuse pairs of which a model reads the same tokens whichever answer it is given.

    Args:
        pairs: What it learns from.
        read: The ids that it reads of both answers of each pair.
        encode: Gives those ids whole; asked for what is refused alone.
        where: Says which rows pairs are from; asked for the first of what is refused.
        max_tokens: Where rows are cut.
        key: The config path of that number; ``data.path`` where it is the context of a model.

    Raises:
        DataError: there is such a pair. Names the smallest number that tells all of them apart.
    """
    alike = [pair for pair, (safe, unsafe) in zip(pairs, read, strict=True) if safe == unsafe]
    if not alike:
        return
    needed = [_num_to_differ(*map(encode, sides(pair))) for pair in alike]
    enough = max(num or 0 for num in needed)
    remedies = []
    if enough and key == "data.path":
        remedies.append(f"Shorten their prompts, or take a model that reads {enough} tokens.")
    elif enough:
        remedies.append(f"Raise it to {enough}.")
    if num_same := needed.count(None):
        remedies.append(f"Remove {num_same} whose answers have the same tokens at any length.")
    raise DataError.broken_rule(
        key,
        "hold pairs whose answers differ in what the model reads of them"
        if key == "data.path"
        else "tell the two answers of every pair apart",
        f"{len(alike)} of {len(pairs)} pairs with the same {max_tokens} tokens or fewer for both, "
        f"first that of {alike[0].prompt[:_BEGIN_CHARS]!r}{where(alike[:_NUM_NAMED])}",
        " ".join(remedies),
    )


def _num_to_differ(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return how many ids tell two rows apart; None where nothing does."""
    pairs = enumerate(zip_longest(one, other), start=1)
    return next((num for num, (first, second) in pairs if first != second), None)
