"""PKU-SafeRLHF: two answers a row, whether each is safe, and which is safer.

Source: Ji et al. 2023 (arXiv:2307.04657).
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypedDict, cast

from rpa_ray.data.order import normalise
from rpa_ray.data.schema import Format, Kind, RestrictedPrompt, Row, RowRule, TwoAnswers, columns

logger = logging.getLogger(__name__)


class _Comparison(TypedDict):
    prompt: str
    response_0: str
    response_1: str
    is_response_0_safe: bool
    is_response_1_safe: bool
    better_response_id: int
    """The more helpful answer; says nothing about safety."""
    safer_response_id: int


def _pairs(rows: Sequence[Row], *, every: bool) -> Iterator[TwoAnswers]:
    """Give a pair a row with exactly one safe answer; with ``every`` of all others as well."""
    num_equal = 0
    for row in cast("Sequence[_Comparison]", rows):
        mixed = row["is_response_0_safe"] != row["is_response_1_safe"]
        if not (mixed or every):
            continue
        answers = (row["response_0"], row["response_1"])
        if answers[0].strip() == answers[1].strip():
            num_equal += 1
            continue
        # Where one of them is safe, a checked row calls that one safer.
        safer = row["safer_response_id"]
        yield TwoAnswers(row["prompt"], answers[safer], answers[1 - safer])
    if num_equal:
        logger.warning("left out %d rows with two equal answers", num_equal)


def _unanswered(rows: Sequence[Row]) -> list[TwoAnswers]:
    answers = [
        (row["prompt"], answer, is_safe)
        for row in cast("Sequence[_Comparison]", rows)
        for answer, is_safe in (
            (row["response_0"], row["is_response_0_safe"]),
            (row["response_1"], row["is_response_1_safe"]),
        )
    ]
    safe = {(normalise(prompt), answer.strip()) for prompt, answer, is_safe in answers if is_safe}
    return [
        TwoAnswers(prompt, "", answer)
        for prompt, answer, is_safe in answers
        if not is_safe and (normalise(prompt), answer.strip()) not in safe
    ]


def _restricted_prompts(rows: Sequence[Row]) -> list[RestrictedPrompt]:
    return [
        RestrictedPrompt(row["prompt"])
        for row in cast("Sequence[_Comparison]", rows)
        if not (row["is_response_0_safe"] and row["is_response_1_safe"])
    ]


def _names_the_safe_answer(row: Row) -> bool:
    flags = (row["is_response_0_safe"], row["is_response_1_safe"])
    return flags[0] == flags[1] or bool(flags[int(row["safer_response_id"] == 1)])


SAFE_RLHF = Format(
    columns=columns(Kind.TEXT, "prompt", "response_0", "response_1")
    + columns(Kind.FLAG, "is_response_0_safe", "is_response_1_safe")
    + columns(Kind.CHOICE, "better_response_id", "safer_response_id"),
    rules=(
        RowRule(
            rule="name the safe one of a safe and an unsafe answer as {safer_response_id}",
            found="the unsafe one",
            holds=_names_the_safe_answer,
        ),
    ),
    hub_id="PKU-Alignment/PKU-SafeRLHF",
    embedded=True,
    pairs=partial(_pairs, every=False),
    all_pairs=partial(_pairs, every=True),
    unanswered=_unanswered,
    restricted_prompts=_restricted_prompts,
)
