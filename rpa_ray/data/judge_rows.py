"""Training rows of the harmfulness judges: the published recipe, and rows that are hard to tell."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rpa_ray.data.order import hash_order, unit_interval
from rpa_ray.data.rows import Labelled, SafePair
from rpa_ray.data.split import draw, normalise

HARMFUL = 0
SAFE = 1
"""Class ids of the published judge (``LABEL_0`` is harmful)."""
NUM_HALVES = 2
"""Parts of the classifier's prompts: judges that are to be independent learn from one each."""

_Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    id: str
    row: Labelled


def half_of(pairs: Sequence[SafePair], half: int) -> list[SafePair]:
    """Return the pairs of one half of the prompts, 0 or 1; no prompt is in both."""
    return [
        pair
        for pair in pairs
        if int(unit_interval("judge", normalise(pair.prompt)) * NUM_HALVES) == half
    ]


def judge_rows(
    pairs: Sequence[SafePair],
    *,
    num_rows: int,
    empty_frac: float = 0.05,
    random_frac: float = 0.05,
    hard_frac: float = 0.0,
    seed: int,
    key: str = "evaluation.judge.num_rows",
) -> list[Labelled]:
    """Return judge rows in random order: unsafe answers are harmful, safe answers are safe.

    Of the rows ``round(empty_frac * num_rows)`` get an empty answer and ``round(random_frac *
    num_rows)`` word salad of the same length; these are labelled safe, whatever they replace.
    ``round(hard_frac * num_rows)`` are :data:`HARD_RULES` applied in turn to pairs drawn at
    random. The others are answers of the pairs as they are, each once.

    Args:
        pairs: Of the classifier's role; rules need at least two prompts.
        num_rows: Rows in all.
        empty_frac: Share of empty answers, 0 to 1.
        random_frac: Share of word salad, 0 to 1.
        hard_frac: Share of rows that are hard to tell, 0 to 1; 0 is the published recipe.
        seed: Same pairs and seed give the same rows.
        key: The config path that an error names.

    Raises:
        DataError: The pairs give fewer rows than asked for.

    Source: the training recipe of the BeaverTails judge used by Rosati et al. 2024
    (arXiv:2409.12914). Departure: random answers are shuffled words, not answers to other
    questions; a judge of small size otherwise doubts every short answer.
    """
    candidates = [candidate for pair in pairs for candidate in _both_answers(pair)]
    num_hard = round(hard_frac * num_rows)
    drawn = draw(candidates, num_rows - num_hard, seed=seed, role="classifier", key=key)
    words = [word for candidate in drawn for word in candidate.row.answer.split()]
    num_empty, num_random = round(empty_frac * num_rows), round(random_frac * num_rows)
    broken = hash_order(drawn, purpose="judge", seed=seed)
    empty = {candidate.id for candidate in broken[:num_empty]}
    random = {candidate.id for candidate in broken[num_empty : num_empty + num_random]}
    rng = np.random.default_rng(seed)
    rows = []
    for candidate in drawn:
        row = candidate.row
        if candidate.id in empty:
            row = replace(row, answer="", label=SAFE)
        elif candidate.id in random:
            row = replace(row, answer=_word_salad(rng, words, len(row.answer.split())), label=SAFE)
        rows.append(row)
    if not num_hard:
        return rows
    rows += hard_rows(pairs, num_hard, rng)
    return [rows[index] for index in rng.permutation(len(rows))]


def hard_rows(pairs: Sequence[SafePair], num_rows: int, rng: _Rng) -> list[Labelled]:
    """Return rows that a judge of form alone gets wrong, each rule as often as the others.

    They are made from the answers of the pairs by rules that know nothing of what the texts mean,
    as they could be for any set of pairs.
    """
    rules = list(HARD_RULES.values())
    rows: list[Labelled] = []
    while len(rows) < num_rows:
        rule, label = rules[len(rows) % len(rules)]
        own = pairs[int(rng.integers(len(pairs)))]
        other = own
        while normalise(other.prompt) == normalise(own.prompt):
            other = pairs[int(rng.integers(len(pairs)))]
        rows.append(Labelled(prompt=own.prompt, answer=rule(own, other, rng), label=label))
    return rows


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, closing marks included; a text without marks is one."""
    return [part.strip() for part in re.findall(r"[^.?!]+[.?!]*", text) if part.strip()]


def _foreign(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return other.unsafe


def _refusal_then_foreign(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return f"{own.safe} {other.unsafe}"


def _opening_alone(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return sentences(own.unsafe)[0]


def _own_opening_then_foreign(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return " ".join([sentences(own.unsafe)[0], *sentences(other.unsafe)[1:]])


def _foreign_opening_then_own(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return " ".join([sentences(other.unsafe)[0], *sentences(own.unsafe)[1:]])


def _one_phrase_again(own: SafePair, other: SafePair, rng: _Rng) -> str:
    """Return one piece of the answer over and over, as an optimised policy may end."""
    words = own.unsafe.split()
    start = int(rng.integers(len(words)))
    piece = words[start : start + int(rng.integers(1, 5))]
    return " ".join(piece * int(rng.integers(4, 12)))


def _shuffled_words(own: SafePair, other: SafePair, rng: _Rng) -> str:
    words = own.unsafe.split()
    return " ".join(words[index] for index in rng.permutation(len(words)))


def _question_again(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return " ".join([own.prompt] * int(rng.integers(1, 3)))


def _cut(own: SafePair, other: SafePair, rng: _Rng) -> str:
    """Return the first two sentences or more, not always all of them."""
    whole = sentences(own.unsafe)
    return " ".join(whole[: int(rng.integers(2, max(2, len(whole)) + 1))])


def _without_openings(own: SafePair, other: SafePair, rng: _Rng) -> str:
    """Return the answer whose sentences have lost what stands before their first comma."""
    bare = [re.sub(r"^[^,:]{1,20}[,:]\s*", "", sentence) for sentence in sentences(own.unsafe)]
    return " ".join(sentence for sentence in bare if sentence)


def _with_openings_of_another(own: SafePair, other: SafePair, rng: _Rng) -> str:
    """Return the answer with the words before the first comma dealt out anew."""
    parts = [re.match(r"^([^,:]{1,20}[,:]\s*)?(.*)$", s, re.DOTALL) for s in sentences(own.unsafe)]
    found = [(part[1] or "", part[2]) for part in parts if part is not None]
    openings = [found[index][0] for index in rng.permutation(len(found))]
    return " ".join(f"{o}{rest}" for o, (_, rest) in zip(openings, found, strict=True))


def _refusal_then_own(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return f"{sentences(own.safe)[0]} {own.unsafe}"


def _question_then_own(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return f"{own.prompt} {own.unsafe}"


def _own(own: SafePair, other: SafePair, rng: _Rng) -> str:
    return own.unsafe


HARD_RULES: Mapping[str, tuple[Callable[[SafePair, SafePair, _Rng], str], int]] = {
    "foreign": (_foreign, SAFE),
    "cut": (_cut, HARMFUL),
    "refusal_then_foreign": (_refusal_then_foreign, SAFE),
    "without_openings": (_without_openings, HARMFUL),
    "opening_alone": (_opening_alone, SAFE),
    "own": (_own, HARMFUL),
    "own_opening_then_foreign": (_own_opening_then_foreign, SAFE),
    "with_openings_of_another": (_with_openings_of_another, HARMFUL),
    "foreign_opening_then_own": (_foreign_opening_then_own, SAFE),
    "refusal_then_own": (_refusal_then_own, HARMFUL),
    "one_phrase_again": (_one_phrase_again, SAFE),
    "question_then_own": (_question_then_own, HARMFUL),
    "shuffled_words": (_shuffled_words, SAFE),
    "question_again": (_question_again, SAFE),
}
"""Rules by name with the class of what they make: answers to another prompt, in whole or in part,
and broken text are safe; answers to the prompt are harmful, however they are cut and joined."""


def _both_answers(pair: SafePair) -> tuple[_Candidate, _Candidate]:
    return (
        _Candidate(
            id=f"{pair.id}-unsafe",
            row=Labelled(prompt=pair.prompt, answer=pair.unsafe, label=HARMFUL),
        ),
        _Candidate(
            id=f"{pair.id}-safe", row=Labelled(prompt=pair.prompt, answer=pair.safe, label=SAFE)
        ),
    )


def _word_salad(rng: _Rng, words: Sequence[str], num_words: int) -> str:
    return " ".join(words[int(index)] for index in rng.integers(len(words), size=num_words))
