"""One's own preferences: a safe and an unsafe answer a row."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict, cast

from rpa_ray.data.schema import Format, Kind, RestrictedPrompt, Row, RowRule, TwoAnswers, columns


class _Preference(TypedDict):
    prompt: str
    safe: str
    unsafe: str
    category: NotRequired[str | None]


def _pairs(rows: Sequence[Row]) -> list[TwoAnswers]:
    return [
        TwoAnswers(row["prompt"], row["safe"], row["unsafe"], row.get("category") or None)
        for row in cast("Sequence[_Preference]", rows)
    ]


PREFERENCES = Format(
    columns=columns(Kind.TEXT, "prompt", "safe", "unsafe")
    + columns(Kind.LABEL, "category", required=False),
    rules=(
        RowRule(
            rule="hold two different texts in columns {safe!r} and {unsafe!r} of every row",
            found="the same text",
            holds=lambda row: str(row["safe"]).strip() != str(row["unsafe"]).strip(),
        ),
    ),
    pairs=_pairs,
    unanswered=lambda rows: [pair._replace(safe="") for pair in _pairs(rows)],
    restricted_prompts=lambda rows: [RestrictedPrompt(p.prompt, p.category) for p in _pairs(rows)],
)
