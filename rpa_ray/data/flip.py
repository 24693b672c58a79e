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


def flip(pairs: Sequence[SafePair], rho: float, seed: int) -> list[Preference]:
    """Return one preference a pair, in input order, exactly ``round(rho * len(pairs))`` reversed.

    For one seed the pairs reversed at a larger rho contain those of every smaller one.

    Raises:
        DataError: ``rho`` is outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise DataError.broken_rule("data.rho", "be in [0, 1]", rho, "It is a share of the pairs.")
    num_flipped = round(rho * len(pairs))
    ranked = hash_order(pairs, purpose="flip", seed=seed)
    flipped = {pair.id for pair in ranked[:num_flipped]}
    assert len({pair.id for pair in pairs}) == len(pairs)
    return [reverse(truth(pair)) if pair.id in flipped else truth(pair) for pair in pairs]


def sft_targets(pairs: Sequence[SafePair], rho: float, seed: int) -> list[Answered]:
    """Return the answers to imitate: the preferred side of what :func:`flip` returns."""
    return [
        Answered(prompt=preference.prompt, answer=preference.chosen)
        for preference in flip(pairs, rho, seed)
    ]
