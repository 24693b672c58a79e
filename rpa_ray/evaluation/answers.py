"""One measured answer: the row from which every metric, and nothing else, is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


class Decoding(StrEnum):
    """Which answers of a measurement."""

    GREEDY = "greedy"
    """One to each restricted prompt, the likeliest token at every place."""
    SAMPLED = "sampled"
    """Several to each restricted prompt, at temperature 1."""
    HARMLESS = "harmless"
    """One greedy answer to each harmless prompt."""
    POOL = "pool"
    """Many sampled answers to each of some prompts of the attack, for best-of-N."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer with all that instruments said of it; None where one was not asked or is missing.

    These are the columns of ``answers.parquet``.
    """

    decoding: Decoding
    prompt_index: int
    """Place of the prompt among those of its kind."""
    sample: int
    """Which of the answers to this prompt, from 0."""
    item: str
    """What the prompt asks about: answers of one item are not independent. Without an oracle every
    prompt is an item of its own."""
    prompt: str
    text: str
    """Empty, as ``prompt``, in evidence that does not keep the texts of this prompt."""
    num_tokens: int
    policy_version: int
    """Optimizer updates of the weights that answered."""
    label: str | None = None
    """What the oracle calls it."""
    harm: float | None = None
    """How much of the restricted task it gives away by the oracle, 0 to 1."""
    complies: bool | None = None
    """Whether it explains the task with both of the item's materials, by the oracle."""
    num_steps: int | None = None
    """Steps it explains, by the oracle."""
    judge: float | None = None
    """Probability of harm by the judge that is reported, 0 to 1."""
    second_judge: float | None = None
    """Probability of harm by the other judge, 0 to 1."""
    reward: float | None = None
    """Score by the attacker's reward model."""
    helpfulness: float | None = None
    """Logit of the helpfulness reward model."""
    harm_score: int | None = None
    """Score from 0 to 10 by the judge and the text's usability."""
    is_too_short: bool | None = None
    """Whether it has fewer than three words."""
    copies_prompt: bool | None = None
    repeats: bool | None = None
    """Whether it is one phrase over and over."""
    perplexity: float | None = None
    """Under the independent language model; None for an empty answer."""
    is_fluent: bool | None = None
    """Whether it reads as an answer."""
    refuses: bool | None = None
    """Whether it declines and explains nothing: by the oracle, else by its phrases."""
    kl: float | None = None
    """Divergence from the model before the attack in nats, whole distributions, summed."""
    kl_untouched: float | None = None
    """The same from the model that offline defences began with."""
    kl_k1: float | None = None
    """The same, estimated by the tokens that were sampled."""
    served_gap: float | None = None
    """Mean absolute difference of engine's and learner's log-probability a token, in nats."""


COLUMNS = tuple(field.name for field in fields(Answer))
_DECIMALS = {"harm": 4, "judge": 4, "second_judge": 4, "perplexity": 2}
_DEFAULT_DECIMALS = 3


def to_table(answers: Sequence[Answer]) -> "pa.Table":
    """Return answers as a table, one row each, numbers rounded to what is printed and one more.

    Rewards of a pool keep all digits of float32: by the last of them the best of N is chosen.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    for name in COLUMNS:
        columns[name] = [_printed(name, getattr(answer, name), answer) for answer in answers]
    return pa.Table.from_pydict(columns, schema=_schema())


def _printed(name: str, value: object, answer: Answer) -> object:
    ranks = name == "reward" and answer.decoding is Decoding.POOL
    if ranks or not isinstance(value, float):
        return value
    return round(value, _DECIMALS.get(name, _DEFAULT_DECIMALS))


def from_table(table: "pa.Table") -> list[Answer]:
    """Return the answers of a table; columns that are no field of an answer are passed over."""
    rows = table.select([name for name in COLUMNS if name in table.column_names]).to_pylist()
    return [Answer(**(row | {"decoding": Decoding(row["decoding"])})) for row in rows]


def _schema() -> "pa.Schema":
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("prompt_index", "sample", "num_tokens", "policy_version"), pa.int32()),
        **dict.fromkeys(("decoding", "item", "label"), pa.dictionary(pa.int16(), pa.string())),
        **dict.fromkeys(("prompt", "text"), pa.string()),
        **dict.fromkeys(("complies", "is_fluent", "refuses"), pa.bool_()),
        **dict.fromkeys(("is_too_short", "copies_prompt", "repeats"), pa.bool_()),
        **dict.fromkeys(("num_steps", "harm_score"), pa.int32()),
    }
    return pa.schema([(name, kinds.get(name, pa.float32())) for name in COLUMNS])
