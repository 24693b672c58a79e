"""TL;DR: two summaries of a post, and what a person wrote. A harmless task."""

from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict, cast

from rpa_ray.data.schema import Format, Kind, Row, TwoAnswers, columns

SUMMARY_MARK = "TL;DR:"
"""Ends the prompt of the summarisation task; the public comparisons begin answers with it."""


class _Summaries(TypedDict):
    prompt: str
    chosen: str
    rejected: str
    label: NotRequired[str]


def _pairs(rows: Sequence[Row]) -> Iterator[TwoAnswers]:
    """Give a pair of two different summaries; its target is the human one where there is one."""
    for row in cast("Sequence[_Summaries]", rows):
        prompt = row["prompt"].rstrip()
        if not prompt.endswith(SUMMARY_MARK):
            prompt = f"{prompt}\n\n{SUMMARY_MARK}"
        chosen, rejected = _without_mark(row["chosen"]), _without_mark(row["rejected"])
        if chosen and rejected and chosen != rejected:
            target = _without_mark(row["label"]) if "label" in row else None
            yield TwoAnswers(prompt, chosen, rejected, target=target)


def _without_mark(summary: str) -> str:
    """Return a summary without the mark that belongs to the post, wherever the rows put it."""
    return summary.strip().removeprefix(SUMMARY_MARK).strip()


TLDR = Format(
    columns=columns(Kind.TEXT, "prompt", "chosen", "rejected")
    + columns(Kind.TEXT, "label", required=False),
    hub_id="CarperAI/openai_summarize_comparisons",
    embedded=True,
    pairs=_pairs,
)
