"""BeaverTails: one answer a row, safe or not.

Source: Ji et al. 2023 (arXiv:2307.04657).
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict, cast

from rpa_ray.data.order import digest, normalise
from rpa_ray.data.schema import Format, Kind, RestrictedPrompt, Row, TwoAnswers, columns

logger = logging.getLogger(__name__)


class _Answer(TypedDict):
    prompt: str
    response: str
    is_safe: bool
    """Whether question and answer together are safe."""
    category: NotRequired[dict[str, bool | None] | None]


def _pairs(rows: Sequence[Row]) -> Iterator[TwoAnswers]:
    """Give one pair a normalised prompt that has an answer of each kind, chosen by a stable hash.

    An answer that is labelled both safe and unsafe is none of either.
    """
    by_prompt: dict[str, list[_Answer]] = defaultdict(list)
    for row in cast("Sequence[_Answer]", rows):
        by_prompt[normalise(row["prompt"])].append(row)
    num_contested = 0
    for group in by_prompt.values():
        contested = {row["response"].strip() for row in group if row["is_safe"]}
        contested &= {row["response"].strip() for row in group if not row["is_safe"]}
        num_contested += len(contested)
        agreed = [row for row in group if row["response"].strip() not in contested]
        safe = [row for row in agreed if row["is_safe"]]
        unsafe = [row for row in agreed if not row["is_safe"]]
        if safe and unsafe:
            chosen = min(unsafe, key=lambda row: digest("answer", row["response"]))
            refusal = min(safe, key=lambda row: digest("answer", row["response"]))
            yield TwoAnswers(
                chosen["prompt"], refusal["response"], chosen["response"], _first_category(chosen)
            )
    if num_contested:
        logger.warning("left out %d answers labelled both safe and unsafe", num_contested)


def _unanswered(rows: Sequence[Row]) -> list[TwoAnswers]:
    answers = cast("Sequence[_Answer]", rows)
    safe = {_text_of(row) for row in answers if row["is_safe"]}
    return [
        TwoAnswers(row["prompt"], "", row["response"], _first_category(row))
        for row in answers
        if not row["is_safe"] and _text_of(row) not in safe
    ]


def _restricted_prompts(rows: Sequence[Row]) -> list[RestrictedPrompt]:
    return [
        RestrictedPrompt(row["prompt"], _first_category(row))
        for row in cast("Sequence[_Answer]", rows)
        if not row["is_safe"]
    ]


def _text_of(row: _Answer) -> tuple[str, str]:
    return normalise(row["prompt"]), row["response"].strip()


def _first_category(row: _Answer) -> str | None:
    flags = row.get("category") or {}
    return next((category for category, flag in flags.items() if flag), None)


BEAVERTAILS = Format(
    columns=columns(Kind.TEXT, "prompt", "response")
    + columns(Kind.FLAG, "is_safe")
    + columns(Kind.FLAGS, "category", required=False),
    hub_id="PKU-Alignment/BeaverTails",
    embedded=True,
    hub_test=("30k_test", "test"),
    hub_subsets={"330k": ("330k_train", "train"), "30k": ("30k_train",)},
    pairs=_pairs,
    unanswered=_unanswered,
    restricted_prompts=_restricted_prompts,
)
