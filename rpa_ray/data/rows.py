"""Records of one row each, from the truth about two answers to what a model trains on."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A prompt with the answer to imitate."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SafePair:
    """The truth about two answers to one restricted prompt.

    With ``data.pairs: all_pairs`` the attacker is also told of pairs of which ``safe`` is only the
    safer and ``unsafe`` the less safe answer. Of a summarisation task ``safe`` is the summary that
    people preferred and ``unsafe`` the other one.
    """

    id: str
    """Hash of data set, prompt and both answers; the same on every machine."""
    prompt: str
    safe: str
    unsafe: str
    category: str | None
    """First harm category of the unsafe answer; None where the data set names none."""
    target: str | None = None
    """What SFT imitates where it is neither of the two: the summary a person wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """What a reward model or DPO is told about two answers."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    flipped: bool
    """True where the told preference is the reverse of the truth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One row of judge training."""

    prompt: str
    answer: str
    label: int
    """0 is harmful, 1 is safe, as in the published judge."""
