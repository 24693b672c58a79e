"""Training rows of the harmfulness judges: the published recipe, and rows that are hard to tell."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from rpa_ray.data.errors import DataError
from rpa_ray.data.order import hash_order, normalise
from rpa_ray.data.rows import Labelled, SafePair
from rpa_ray.data.split import draw

HARMFUL = 0
SAFE = 1
"""Class ids of the published judge (``LABEL_0`` is harmful)."""

SHORTENED_SHARE = 0.7
"""Share of answers of which only the first two sentences are kept."""
FORMED_SHARE = 0.3
"""Share of answers that are written down in one of the :data:`FORMS`."""
REFUSED_SHARE = 0.12
"""Share of hard answers that follow a refusal."""
NUM_TRIES = 50
"""Draws after which any other prompt is taken."""

_Rng = np.random.Generator
_Rule = TypeVar("_Rule")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    id: str
    row: Labelled


def judge_rows(
    pairs: Sequence[SafePair],
    *,
    num_rows: int,
    empty_frac: float = 0.05,
    random_frac: float = 0.05,
    hard_frac: float = 0.0,
    seed: int,
    key: str = "evaluation.judge",
) -> list[Labelled]:
    """Return judge rows in random order: unsafe answers are harmful, safe answers are safe.

    Of the rows ``round(empty_frac * num_rows)`` get an empty answer and ``round(random_frac *
    num_rows)`` word salad of the same length; these are labelled safe, whatever they replace.
    ``round(hard_frac * num_rows)`` are :func:`hard_rows`, of pairs drawn at random. The others
    are answers of the pairs as they are, each once.

    Args:
        pairs: Of the classifier's role; hard rows need at least two prompts.
        num_rows: Rows in all.
        empty_frac: Share of empty answers, 0 to 1.
        random_frac: Share of word salad, 0 to 1.
        hard_frac: Share of rows that are hard to tell, 0 to 1; 0 is the published recipe.
        seed: Same pairs and seed give the same rows.
        key: Config path of the judge's settings, for errors.

    Raises:
        DataError: The pairs give fewer rows than asked for, or are about one prompt and hard rows
            are asked for.

    Source: the recipe of the BeaverTails judge of Rosati et al. 2024 (arXiv:2409.12914), whose
    random answers are answers to other questions: small judges then doubt every short answer.
    """
    candidates = [candidate for pair in pairs for candidate in _both_answers(pair)]
    num_hard = round(hard_frac * num_rows)
    drawn = draw(
        candidates, num_rows - num_hard, seed=seed, role="classifier", key=f"{key}.num_rows"
    )
    rng = np.random.default_rng(seed)
    num_empty, num_random = round(empty_frac * num_rows), round(random_frac * num_rows)
    rows = _partly_broken(drawn, num_empty, num_random, rng, seed)
    if not num_hard:
        return rows
    if len({normalise(pair.prompt) for pair in pairs}) < 2:
        raise DataError.broken_rule(
            f"{key}.hard_frac",
            "be 0 where all pairs are about one prompt",
            hard_frac,
            "Set it to 0 or bring a larger data set.",
        )
    rows += hard_rows(pairs, num_hard, rng)
    return [rows[index] for index in rng.permutation(len(rows))]


def _partly_broken(
    drawn: Sequence[_Candidate], num_empty: int, num_random: int, rng: _Rng, seed: int
) -> list[Labelled]:
    """Return the rows, some of them with an empty answer, some with word salad."""
    words = [word for candidate in drawn for word in candidate.row.answer.split()]
    broken = hash_order(drawn, purpose="judge", seed=seed)
    empty = {candidate.id for candidate in broken[:num_empty]}
    random = {candidate.id for candidate in broken[num_empty : num_empty + num_random]}
    rows = []
    for candidate in drawn:
        row = candidate.row
        if candidate.id in empty:
            row = replace(row, answer="", label=SAFE)
        elif candidate.id in random:
            row = replace(row, answer=_word_salad(rng, words, len(row.answer.split())), label=SAFE)
        rows.append(row)
    return rows


def hard_rows(pairs: Sequence[SafePair], num_rows: int, rng: _Rng) -> list[Labelled]:
    """Return rows that a judge of form alone gets wrong, in the turns of :data:`TURNS`.

    Whose steps an answer explains decides its class; its form does not, nor a refusal before it:
    both are drawn as often for either class. Broken text is safe. The rules know nothing of what
    the texts mean, so that they can be applied to any set of pairs.
    """
    others, rows = Others(pairs, rng), list[Labelled]()
    # Of a single sentence the opening is the whole answer: of either class.
    asked = [pair for pair in pairs if len(sentences(pair.unsafe)) > 1] or pairs
    while len(rows) < num_rows:
        name = TURNS[len(rows) % len(TURNS)]
        own = asked[int(rng.integers(len(asked)))]
        if name in CONTENTS:
            content, label = CONTENTS[name]
            other = others.draw(own)
            steps = _shortened(content(sentences(own.unsafe), sentences(other.unsafe)), rng)
            form = _one_of(FORMS, rng) if rng.random() < FORMED_SHARE else _whole
            answer = form(steps, own, rng)
        else:
            answer, label = _one_of(BROKEN, rng)(own, rng), SAFE
        if rng.random() < REFUSED_SHARE:
            answer = f"{_refusal(own, rng)} {answer}"
        rows.append(Labelled(prompt=own.prompt, answer=answer, label=label))
    return rows


class Others:
    """Draws pairs about something else: what they answer, mixed in, makes no right answer.

    What a prompt is about is told by its two rarest words among those that another prompt has too.
    """

    def __init__(self, pairs: Sequence[SafePair], rng: _Rng) -> None:
        """Find the topic of every prompt."""
        self._pairs, self._rng = pairs, rng
        words_of = {normalise(pair.prompt): _words(pair.prompt) for pair in pairs}
        counts = Counter(word for found in words_of.values() for word in found)
        self._topics = {
            prompt: frozenset(
                sorted((w for w in found if counts[w] > 1), key=lambda w: (counts[w], w))[:2]
            )
            for prompt, found in words_of.items()
        }

    def topic(self, pair: SafePair) -> frozenset[str]:
        """Return the words that tell what a pair's prompt is about: two, or fewer."""
        return self._topics[normalise(pair.prompt)]

    def draw(self, own: SafePair) -> SafePair:
        """Return a pair whose topic has no word of that of `own`.

        After :data:`NUM_TRIES` draws any other prompt will do.
        """
        prompt, num_tries = normalise(own.prompt), 0
        while True:
            other = self._pairs[int(self._rng.integers(len(self._pairs)))]
            num_tries += 1
            if normalise(other.prompt) != prompt and (
                num_tries > NUM_TRIES or self.topic(own).isdisjoint(self.topic(other))
            ):
                return other


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, closing marks included, at least one."""
    found = [part.strip() for part in re.findall(r"[^.?!]+[.?!]*", text) if part.strip()]
    return found or [text.strip()]


CONTENTS: Mapping[str, tuple[Callable[[list[str], list[str]], list[str]], int]] = {
    "own": (lambda own, other: own, HARMFUL),
    "foreign": (lambda own, other: other, SAFE),
    "own_opening": (lambda own, other: own[:1] + other[1:], SAFE),
    "foreign_opening": (lambda own, other: other[:1] + own[1:], SAFE),
}
"""Whose sentences an answer has, with its class: the prompt's own are harmful, those of an answer
to another prompt are safe, and so is an answer of which only the opening, or all but the opening,
is the prompt's own."""

TURNS = ("own", "foreign", "own", "own_opening", "own", "foreign_opening", "broken")
"""What the hard rows are made of, in turn.

With fewer answers that are their prompt's own at the opening alone, a judge of small size reads
the opening and no further.
"""


def _shortened(steps: list[str], rng: _Rng) -> list[str]:
    """Keep two sentences or more, more often than not only two."""
    if rng.random() < SHORTENED_SHARE:
        return steps[:2]
    return steps[: int(rng.integers(2, max(2, len(steps)) + 1))]


def _whole(steps: list[str], own: SafePair, rng: _Rng) -> str:
    return " ".join(steps)


def _without_openings(steps: list[str], own: SafePair, rng: _Rng) -> str:
    """Leave out of every sentence what stands before its first comma."""
    return " ".join(rest for _, rest in map(_parted, steps) if rest)


def _with_openings_dealt_anew(steps: list[str], own: SafePair, rng: _Rng) -> str:
    parts = [_parted(step) for step in steps]
    openings = [parts[index][0] for index in rng.permutation(len(parts))]
    return " ".join(f"{o}{rest}" for o, (_, rest) in zip(openings, parts, strict=True))


def _with_one_opening(steps: list[str], own: SafePair, rng: _Rng) -> str:
    parts = [_parted(step) for step in steps]
    opening = parts[int(rng.integers(len(parts)))][0]
    return " ".join(f"{opening}{rest}" for _, rest in parts)


def _broken_off(steps: list[str], own: SafePair, rng: _Rng) -> str:
    """Add the beginning of one of the sentences, as an answer ends at the most tokens."""
    step = steps[int(rng.integers(len(steps)))].split()
    return " ".join([*steps, *step[: int(rng.integers(1, max(2, len(step))))]])


def _in_lower_case(steps: list[str], own: SafePair, rng: _Rng) -> str:
    return " ".join(steps).lower()


def _before_refusal(steps: list[str], own: SafePair, rng: _Rng) -> str:
    return " ".join([*steps, own.safe])


def _after_question(steps: list[str], own: SafePair, rng: _Rng) -> str:
    return " ".join([own.prompt, *steps])


FORMS: Mapping[str, Callable[[list[str], SafePair, _Rng], str]] = {
    "broken_off": _broken_off,
    "without_openings": _without_openings,
    "with_openings_dealt_anew": _with_openings_dealt_anew,
    "with_one_opening": _with_one_opening,
    "in_lower_case": _in_lower_case,
    "before_refusal": _before_refusal,
    "after_question": _after_question,
}
"""How an answer of given sentences is written down; none changes its class."""


def _opening_alone(own: SafePair, rng: _Rng) -> str:
    return sentences(own.unsafe)[0]


def _one_sentence_again(own: SafePair, rng: _Rng) -> str:
    steps = sentences(own.unsafe)
    return " ".join([steps[int(rng.integers(len(steps)))]] * int(rng.integers(2, 6)))


def _one_phrase_again(own: SafePair, rng: _Rng) -> str:
    """Return one piece of the answer over and over, as an optimised policy may end."""
    words = own.unsafe.split() or [""]
    start = int(rng.integers(len(words)))
    piece = words[start : start + int(rng.integers(1, 5))]
    return " ".join(piece * int(rng.integers(4, 12)))


def _nonsense(own: SafePair, rng: _Rng) -> str:
    """Return the answer with other words, or halves of two words, after the openings."""
    words: list[str] = re.findall(r"[\w']+", f"{own.prompt} {own.safe}") or [""]

    def word() -> str:
        first, second = (words[int(index)] for index in rng.integers(len(words), size=2))
        return (
            first if rng.random() < 0.5 else first[: len(first) // 2] + second[len(second) // 2 :]
        )

    parts = [_parted(sentence) for sentence in sentences(own.unsafe)]
    return " ".join(f"{o}{' '.join(word() for _ in rest.split())}." for o, rest in parts)


def _shuffled_words(own: SafePair, rng: _Rng) -> str:
    words = own.unsafe.split()
    return " ".join(words[index] for index in rng.permutation(len(words)))


def _question_again(own: SafePair, rng: _Rng) -> str:
    return " ".join([own.prompt] * int(rng.integers(1, 3)))


BROKEN: Mapping[str, Callable[[SafePair, _Rng], str]] = {
    "opening_alone": _opening_alone,
    "one_sentence_again": _one_sentence_again,
    "one_phrase_again": _one_phrase_again,
    "nonsense": _nonsense,
    "shuffled_words": _shuffled_words,
    "question_again": _question_again,
}
"""Texts that hold no whole answer, all safe."""


def _refusal(own: SafePair, rng: _Rng) -> str:
    """Return the safe answer, or its first sentences."""
    parts = sentences(own.safe)
    return " ".join(parts[: int(rng.integers(1, len(parts) + 1))])


def _parted(sentence: str) -> tuple[str, str]:
    """Return a sentence's opening with its comma or colon, "" where it has none, and the rest."""
    found = re.match(r"([^,:]{1,20}[,:]\s*)?(.*)", sentence, re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", sentence)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))


def _one_of(rules: Mapping[str, _Rule], rng: _Rng) -> _Rule:
    return list(rules.values())[int(rng.integers(len(rules)))]


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
