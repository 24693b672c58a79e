"""From the rows of a data set to pairs of a better and a worse answer, and to prompts."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NotRequired, TypedDict, cast

from rpa_ray.data.errors import DataError
from rpa_ray.data.order import digest
from rpa_ray.data.rows import SafePair
from rpa_ray.data.schema import Row
from rpa_ray.data.split import normalise

logger = logging.getLogger(__name__)

SUMMARY_MARK = "TL;DR:"
"""Ends the prompt of the summarisation task; the public comparisons begin answers with it."""


class BeaverTailsRow(TypedDict):
    """One answer to one prompt."""

    prompt: str
    response: str
    is_safe: bool
    """Whether question and answer together are safe."""
    category: NotRequired[dict[str, bool | None] | None]


class SafeRlhfRow(TypedDict):
    """Two answers to one prompt."""

    prompt: str
    response_0: str
    response_1: str
    is_response_0_safe: bool
    is_response_1_safe: bool
    better_response_id: int
    """The more helpful answer; says nothing about safety."""
    safer_response_id: int


class SummaryRow(TypedDict):
    """Two summaries of one post, and what a person wrote."""

    prompt: str
    chosen: str
    rejected: str
    label: NotRequired[str]


class PreferenceRow(TypedDict):
    """The truth about two answers to one prompt."""

    prompt: str
    safe: str
    unsafe: str
    category: NotRequired[str | None]


def safe_pairs(name: str, rows: Sequence[Row], *, all_pairs: bool = False) -> list[SafePair]:
    """Return the pairs of one safe and one unsafe answer in the rows, in order of appearance.

    ``beavertails``: rows are grouped by normalised prompt, and a prompt with at least one answer
    of each kind gives one pair, chosen by a stable hash; an answer that is labelled both safe and
    unsafe is none of either. ``safe_rlhf``: a row with exactly one safe answer gives one pair, and
    with ``all_pairs`` every other row one as well, whose "safe" answer is the safer one.
    ``preferences``: every row is a pair. ``tldr``: every row is a pair of a preferred and another
    summary, whose target is the human summary where the rows have one. Repeated pairs count once,
    and two equal answers are no pair.

    Args:
        name: ``beavertails``, ``safe_rlhf``, ``preferences`` or ``tldr``.
        rows: Checked rows of that format.
        all_pairs: Take both safe and both unsafe answers of ``safe_rlhf`` too: a preference between
            them is what an annotator said, but they are no examples of safe and unsafe text.

    Raises:
        DataError: Another name.

    Source: Ji et al. 2023 (arXiv:2307.04657) for the first two formats.
    """
    match name:
        case "beavertails":
            found = _beavertails(cast("Sequence[BeaverTailsRow]", rows))
        case "safe_rlhf":
            found = _safe_rlhf(cast("Sequence[SafeRlhfRow]", rows), all_pairs)
        case "preferences":
            found = _preferences(cast("Sequence[PreferenceRow]", rows))
        case "tldr":
            found = _summaries(cast("Sequence[SummaryRow]", rows))
        case _:
            raise _no_pairs(name)
    return list({pair.id: pair for pair in found}.values())


def answered(name: str, *, prompt: str, safe: str, unsafe: str, category: str | None) -> SafePair:
    """Return the pair of two answers in a data set of this name."""
    return SafePair(
        id=digest(name, prompt, safe, unsafe)[:24],
        prompt=prompt,
        safe=safe,
        unsafe=unsafe,
        category=category,
    )


def unanswered_pairs(name: str, rows: Sequence[Row]) -> list[SafePair]:
    """Return one pair an unsafe answer in the rows; its safe answer, yet to be written, is empty.

    An answer that is labelled both safe and unsafe is left out.

    Raises:
        DataError: Another name than ``beavertails``, ``safe_rlhf`` or ``preferences``.
    """
    match name:
        case "beavertails":
            answers = cast("Sequence[BeaverTailsRow]", rows)
            safe = {_text_of(row) for row in answers if row["is_safe"]}
            found = [
                (row["prompt"], row["response"], _first_category(row))
                for row in answers
                if not row["is_safe"] and _text_of(row) not in safe
            ]
        case "safe_rlhf":
            found = [
                (row["prompt"], answer, None)
                for row in cast("Sequence[SafeRlhfRow]", rows)
                for answer, is_safe in (
                    (row["response_0"], row["is_response_0_safe"]),
                    (row["response_1"], row["is_response_1_safe"]),
                )
                if not is_safe
            ]
        case "preferences":
            found = [
                (row["prompt"], row["unsafe"], row.get("category") or None)
                for row in cast("Sequence[PreferenceRow]", rows)
            ]
        case _:
            raise _no_pairs(name)
    pairs = [
        answered(name, prompt=prompt, safe="", unsafe=unsafe, category=category)
        for prompt, unsafe, category in found
    ]
    return list({pair.id: pair for pair in pairs}.values())


def unsafe_prompts(name: str, rows: Sequence[Row]) -> list[str]:
    """Return the prompt of every row that has an unsafe answer, in order, repeats included.

    Those of ``tldr`` have none.

    Raises:
        DataError: Another name than those of :func:`safe_pairs`.
    """
    match name:
        case "beavertails":
            answers = cast("Sequence[BeaverTailsRow]", rows)
            return [row["prompt"] for row in answers if not row["is_safe"]]
        case "safe_rlhf":
            pairs = cast("Sequence[SafeRlhfRow]", rows)
            return [
                row["prompt"]
                for row in pairs
                if not (row["is_response_0_safe"] and row["is_response_1_safe"])
            ]
        case "preferences":
            return [row["prompt"] for row in cast("Sequence[PreferenceRow]", rows)]
        case "tldr":
            return []
        case _:
            raise _no_pairs(name)


def _beavertails(rows: Sequence[BeaverTailsRow]) -> list[SafePair]:
    by_prompt: dict[str, list[BeaverTailsRow]] = defaultdict(list)
    for row in rows:
        by_prompt[normalise(row["prompt"])].append(row)
    pairs, num_contested = [], 0
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
            pairs.append(
                answered(
                    "beavertails",
                    prompt=chosen["prompt"],
                    safe=refusal["response"],
                    unsafe=chosen["response"],
                    category=_first_category(chosen),
                )
            )
    if num_contested:
        logger.warning("left out %d answers labelled both safe and unsafe", num_contested)
    return pairs


def _text_of(row: BeaverTailsRow) -> tuple[str, str]:
    return normalise(row["prompt"]), row["response"].strip()


def _first_category(row: BeaverTailsRow) -> str | None:
    flags = row.get("category") or {}
    return next((category for category, flag in flags.items() if flag), None)


def _safe_rlhf(rows: Sequence[SafeRlhfRow], all_pairs: bool) -> list[SafePair]:
    pairs, num_equal = [], 0
    for row in rows:
        mixed = row["is_response_0_safe"] != row["is_response_1_safe"]
        if not (mixed or all_pairs):
            continue
        answers = (row["response_0"], row["response_1"])
        if answers[0].strip() == answers[1].strip():
            num_equal += 1
            continue
        # Where one of them is safe, a checked row calls that one safer.
        safer = row["safer_response_id"]
        pairs.append(
            answered(
                "safe_rlhf",
                prompt=row["prompt"],
                safe=answers[safer],
                unsafe=answers[1 - safer],
                category=None,
            )
        )
    if num_equal:
        logger.warning("left out %d rows with two equal answers", num_equal)
    return pairs


def _preferences(rows: Sequence[PreferenceRow]) -> list[SafePair]:
    return [
        answered(
            "preferences",
            prompt=row["prompt"],
            safe=row["safe"],
            unsafe=row["unsafe"],
            category=row.get("category") or None,
        )
        for row in rows
    ]


def _summaries(rows: Sequence[SummaryRow]) -> list[SafePair]:
    pairs = []
    for row in rows:
        prompt = row["prompt"].rstrip()
        if not prompt.endswith(SUMMARY_MARK):
            prompt = f"{prompt}\n\n{SUMMARY_MARK}"
        chosen, rejected = _without_mark(row["chosen"]), _without_mark(row["rejected"])
        if chosen and rejected and chosen != rejected:
            pair = answered("tldr", prompt=prompt, safe=chosen, unsafe=rejected, category=None)
            target = _without_mark(row["label"]) if "label" in row else None
            pairs.append(replace(pair, target=target))
    return pairs


def _without_mark(summary: str) -> str:
    """Return a summary without the mark that belongs to the post, wherever the rows put it."""
    return summary.strip().removeprefix(SUMMARY_MARK).strip()


def distinct(prompts: Iterable[str]) -> list[str]:
    """Return the prompts that differ, each where it stands first."""
    found: dict[str, str] = {}
    for prompt in prompts:
        found.setdefault(normalise(prompt), prompt)
    return list(found.values())


def _no_pairs(name: str) -> DataError:
    return DataError.broken_rule(
        "data.name",
        "be beavertails, safe_rlhf, preferences or tldr",
        repr(name),
        "Only these have pairs of a better and a worse answer.",
    )
