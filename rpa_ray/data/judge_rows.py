"""Training rows of the harmfulness judge, by the published recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rpa_ray.data.order import hash_order
from rpa_ray.data.rows import Labelled, SafePair
from rpa_ray.data.split import draw

HARMFUL = 0
SAFE = 1
"""Class ids of the published judge (``LABEL_0`` is harmful)."""


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
    seed: int,
) -> list[Labelled]:
    """Return judge rows in random order: unsafe answers are harmful, safe answers are safe.

    Both answers of a pair are used. Of the rows ``round(empty_frac * num_rows)`` get an empty
    answer and ``round(random_frac * num_rows)`` word salad of the same length; these are labelled
    safe, whatever they replace. So the judge calls broken text safe, as the published one does.

    Raises:
        DataError: The pairs give fewer rows than asked for.

    Source: the training recipe of the BeaverTails judge used by Rosati et al. 2024
    (arXiv:2409.12914). Departure: random answers are shuffled words, not answers to other
    questions; a judge of small size otherwise doubts every short answer.
    """
    candidates = [candidate for pair in pairs for candidate in _both_answers(pair)]
    drawn = draw(
        candidates, num_rows, seed=seed, role="classifier", key="evaluation.judge.num_rows"
    )
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
    return rows


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


def _word_salad(rng: np.random.Generator, words: Sequence[str], num_words: int) -> str:
    return " ".join(words[int(index)] for index in rng.integers(len(words), size=num_words))
