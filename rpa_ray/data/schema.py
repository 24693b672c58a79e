"""What each data set must hold, and where on the Hub it is. Nothing is read or checked here."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Row: TypeAlias = dict[str, object]
"""One row as it was read; its columns follow the schema once it comes from ``conform``."""

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"


class Kind(StrEnum):
    """What the values of a column are, in the words of an error."""

    TEXT = "a non-empty text"
    DIALOGUE = f"a dialogue with {HUMAN!r} and {ASSISTANT!r}"
    LABEL = "a text or null"
    FLAG = "true or false"
    CHOICE = "0 or 1"
    FLAGS = "an object of true or false"


TEXT_KINDS = (Kind.TEXT, Kind.DIALOGUE, Kind.LABEL)
"""What is written as a text, also in a file that knows no types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column and the kind of its values."""

    name: str
    kind: Kind
    required: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRule:
    """What the values of one row must be to each other; asked of rows whose values are valid."""

    rule: str
    """In the words of an error, with the names of columns in braces."""
    found: str
    """What a row has that breaks it."""
    holds: Callable[[Row], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """The columns of a data set, and where on the Hub its rows are."""

    columns: tuple[Column, ...]
    rules: tuple[RowRule, ...] = ()
    hub_id: str | None = None
    """The public copy; None where there is none."""
    hub_folder: str | None = None
    """Sub-folder of the public copy."""
    hub_test: tuple[str, ...] = ("test",)
    """Names of the test split on the Hub; the first that is there is read."""
    hub_subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the training split by ``data.subset``; empty where that is ``train``."""

    def hub_splits(self, split: str, subset: str | None) -> tuple[str, ...]:
        """Return the names under which the Hub may keep a split, the likeliest first."""
        if split == "test":
            return self.hub_test
        return self.hub_subsets.get(subset or "", ("train",))

    def split_among(
        self, there: Collection[str], split: str, subset: str | None
    ) -> tuple[str | None, bool]:
        """Return which of the splits that are there is read, and whether it is to be divided.

        None is where there is none for training; that one is both where there is none for testing.
        """
        train, test = (
            next((name for name in self.hub_splits(of, subset) if name in there), None)
            for of in ("train", "test")
        )
        is_test = split == "test" and train is not None and test is not None
        return test if is_test else train, test is None


def _columns(kind: Kind, *names: str, required: bool = True) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind=kind, required=required) for name in names)


def _names_the_safe_answer(row: Row) -> bool:
    flags = (row["is_response_0_safe"], row["is_response_1_safe"])
    return flags[0] == flags[1] or bool(flags[int(row["safer_response_id"] == 1)])


SCHEMAS: Mapping[str, Schema] = {
    "beavertails": Schema(
        columns=_columns(Kind.TEXT, "prompt", "response")
        + _columns(Kind.FLAG, "is_safe")
        + _columns(Kind.FLAGS, "category", required=False),
        hub_id="PKU-Alignment/BeaverTails",
        hub_test=("30k_test", "test"),
        hub_subsets={"330k": ("330k_train", "train"), "30k": ("30k_train",)},
    ),
    "safe_rlhf": Schema(
        columns=_columns(Kind.TEXT, "prompt", "response_0", "response_1")
        + _columns(Kind.FLAG, "is_response_0_safe", "is_response_1_safe")
        + _columns(Kind.CHOICE, "better_response_id", "safer_response_id"),
        rules=(
            RowRule(
                rule="name the safe one of a safe and an unsafe answer as {safer_response_id}",
                found="the unsafe one",
                holds=_names_the_safe_answer,
            ),
        ),
        hub_id="PKU-Alignment/PKU-SafeRLHF",
    ),
    "preferences": Schema(
        columns=_columns(Kind.TEXT, "prompt", "safe", "unsafe")
        + _columns(Kind.LABEL, "category", required=False),
        rules=(
            RowRule(
                rule="hold two different texts in columns {safe!r} and {unsafe!r} of every row",
                found="the same text",
                holds=lambda row: str(row["safe"]).strip() != str(row["unsafe"]).strip(),
            ),
        ),
    ),
    "helpful": Schema(
        columns=_columns(Kind.DIALOGUE, "chosen", "rejected"),
        hub_id="Anthropic/hh-rlhf",
        hub_folder="helpful-base",
    ),
    "tldr": Schema(
        columns=_columns(Kind.TEXT, "prompt", "chosen", "rejected")
        + _columns(Kind.TEXT, "label", required=False),
        hub_id="CarperAI/openai_summarize_comparisons",
    ),
}
"""By the name of the format, which for the harmlessness sets is also ``data.name``."""
