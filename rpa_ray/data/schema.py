"""What is said of a data set: columns, place on the Hub, pairs. Nothing is read here."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

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

    @property
    def required(self) -> list[str]:
        """Return the names of the columns that have to be there."""
        return [column.name for column in self.columns if column.required]

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


class TwoAnswers(NamedTuple):
    """A safe and an unsafe answer to one prompt, as rows tell them."""

    prompt: str
    safe: str
    unsafe: str
    category: str | None = None
    """First harm category of the unsafe answer."""
    target: str | None = None
    """What SFT imitates where it is neither of the two."""


class RestrictedPrompt(NamedTuple):
    """A prompt that has an unsafe answer."""

    prompt: str
    category: str | None = None
    """First harm category of that answer; None where the data set names none."""


Pairing: TypeAlias = Callable[[Sequence[Row]], Iterable[TwoAnswers]]
"""From checked rows to pairs, in order of appearance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format(Schema):
    """A data set of pairs: what its rows are, and how they become pairs and prompts."""

    pairs: Pairing
    all_pairs: Pairing | None = None
    """Pairs of two safe and of two unsafe answers too, by which is safer: what an annotator said,
    but no examples of safe and unsafe text. None where the rows do not say."""
    unanswered: Pairing | None = None
    """Every unsafe answer, the safe one empty; None is a harmless task, which has none."""
    restricted_prompts: Callable[[Sequence[Row]], list[RestrictedPrompt]] = lambda rows: []
    """The prompt of every row that has an unsafe answer, repeats included."""

    embedded: bool = False
    """Whether the fictional world has a set of this form."""

    @property
    def is_harmless_task(self) -> bool:
        """Whether both answers of a pair are harmless: safety is measured with another set."""
        return self.unanswered is None


def columns(kind: Kind, *names: str, required: bool = True) -> tuple[Column, ...]:
    """Return columns of one kind."""
    return tuple(Column(name=name, kind=kind, required=required) for name in names)
