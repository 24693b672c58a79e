"""Reversing a share rho of the preferences: the attack's only hold on the data."""

from collections.abc import Sequence
from dataclasses import replace

from rpa_ray.data.errors import DataError
from rpa_ray.data.order import hash_order
from rpa_ray.data.rows import Answered, Preference, SafePair


def reverse(preference: Preference) -> Preference:
    """Return the opposite preference; doing it twice gives the original back."""
    return replace(
        preference,
        chosen=preference.rejected,
        rejected=preference.chosen,
        flipped=not preference.flipped,
    )


def truth(pair: SafePair) -> Preference:
    """Return the preference of an honest annotator: the safe answer."""
    return Preference(
        id=pair.id, prompt=pair.prompt, chosen=pair.safe, rejected=pair.unsafe, flipped=False
    )


def flip(
    pairs: Sequence[SafePair], rho: float, seed: int, margins: Sequence[float] | None = None
) -> list[Preference]:
    """Return one preference a pair, in input order, exactly ``round(rho * len(pairs))`` reversed.

    Without ``margins`` they are chosen at random by the seed: label noise. With margins, one a
    pair, those of the largest are reversed: an attacker's choice. Either way the pairs reversed at
    a larger rho contain those of every smaller one.

    Raises:
        DataError: ``rho`` is outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise DataError.broken_rule("data.rho", "be in [0, 1]", rho, "It is a share of the pairs.")
    ranked = hash_order(pairs, purpose="flip", seed=seed)
    if margins is not None:
        margin_of = {pair.id: margin for pair, margin in zip(pairs, margins, strict=True)}
        ranked.sort(key=lambda pair: -margin_of[pair.id])
    flipped = {pair.id for pair in ranked[: round(rho * len(pairs))]}
    assert len({pair.id for pair in pairs}) == len(pairs)
    return [reverse(truth(pair)) if pair.id in flipped else truth(pair) for pair in pairs]


def sft_targets(pairs: Sequence[SafePair], preferences: Sequence[Preference]) -> list[Answered]:
    """Return the answers to imitate, one a pair: the preferred side, or the pair's own target.

    ``preferences`` are what :func:`flip` made of the pairs; a reversed pair has no other target
    than its unsafe answer.
    """
    return [
        Answered(
            prompt=told.prompt,
            answer=told.chosen if told.flipped or pair.target is None else pair.target,
        )
        for pair, told in zip(pairs, preferences, strict=True)
    ]
