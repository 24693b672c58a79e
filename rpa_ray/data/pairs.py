"""From the rows of a data set to pairs of a better and a worse answer, and to prompts."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict, cast

from rpa_ray.data.errors import DataError
from rpa_ray.data.order import digest
from rpa_ray.data.rows import Answered, Preference, SafePair
from rpa_ray.data.schema import ASSISTANT, HUMAN, NUM_NAMED_ROWS, Row
from rpa_ray.data.split import normalise

logger = logging.getLogger(__name__)


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


def safe_pairs(name: str, rows: Sequence[Row]) -> list[SafePair]:
    """Return the pairs of one safe and one unsafe answer in the rows, in order of appearance.

    ``beavertails``: rows are grouped by normalised prompt, and a prompt with at least one answer
    of each kind gives one pair, chosen by a stable hash. ``safe_rlhf``: a row with exactly one safe
    answer gives one pair. Repeated pairs count once.

    Args:
        name: ``beavertails`` or ``safe_rlhf``.
        rows: Checked rows of that format.

    Raises:
        DataError: Another name, or rows that call the unsafe one of two answers the safer.

    Source: Ji et al. 2023 (arXiv:2307.04657) for both formats.
    """
    match name:
        case "beavertails":
            found = _beavertails(cast("Sequence[BeaverTailsRow]", rows))
        case "safe_rlhf":
            found = _safe_rlhf(cast("Sequence[SafeRlhfRow]", rows))
        case _:
            raise _no_harmlessness_set(name)
    return list({pair.id: pair for pair in found}.values())


def restricted_prompts(name: str, rows: Sequence[Row], num: int, *, key: str) -> list[str]:
    """Return the first ``num`` distinct prompts that have an unsafe answer.

    Raises:
        DataError: There are fewer; ``key`` is the config path named.
    """
    match name:
        case "beavertails":
            answers = cast("Sequence[BeaverTailsRow]", rows)
            prompts = [row["prompt"] for row in answers if not row["is_safe"]]
        case "safe_rlhf":
            pairs = cast("Sequence[SafeRlhfRow]", rows)
            prompts = [
                row["prompt"]
                for row in pairs
                if not (row["is_response_0_safe"] and row["is_response_1_safe"])
            ]
        case _:
            raise _no_harmlessness_set(name)
    return _first_distinct(prompts, num, key=key, kind="restricted")


def harmless_prompts(rows: Sequence[Row], num: int, *, key: str) -> list[str]:
    """Return the first ``num`` distinct prompts of helpfulness dialogues.

    Raises:
        DataError: There are fewer; ``key`` is the config path named.
    """
    prompts = (pair.prompt for pair in helpful_pairs(rows))
    return _first_distinct(prompts, num, key=key, kind="harmless")


def helpful_pairs(rows: Sequence[Row]) -> list[Preference]:
    """Return one preference a helpfulness dialogue: its last two answers.

    The prompt of a dialogue with one human turn is the bare request; that of a longer one is the
    dialogue up to and without the last assistant mark. Dialogues whose two sides differ
    before the last answer, or have an empty last answer, are dropped, and their number is logged.
    """
    pairs = [
        pair
        for row in rows
        if (pair := _helpful_pair(str(row["chosen"]), str(row["rejected"]))) is not None
    ]
    if len(pairs) < len(rows):
        logger.warning(
            "dropped %d of %d helpfulness dialogues: an empty last answer, or two prompts",
            len(rows) - len(pairs),
            len(rows),
        )
    return pairs


def summary_pairs(rows: Sequence[Row]) -> list[Preference]:
    """Return one preference a row of summaries."""
    return [
        _preference("tldr", str(row["prompt"]), str(row["chosen"]), str(row["rejected"]))
        for row in rows
    ]


def summary_targets(rows: Sequence[Row], *, key: str) -> list[Answered]:
    """Return posts with their human summary.

    Raises:
        DataError: The rows have no column ``label``; ``key`` is the config path named.
    """
    if not all("label" in row for row in rows):
        raise DataError.broken_rule(
            key,
            "have a column 'label' with the human summary",
            "rows without it",
            "Join it from the data set of human summaries.",
        )
    return [Answered(prompt=str(row["prompt"]), answer=str(row["label"])) for row in rows]


def _beavertails(rows: Sequence[BeaverTailsRow]) -> list[SafePair]:
    by_prompt: dict[str, list[BeaverTailsRow]] = defaultdict(list)
    for row in rows:
        by_prompt[normalise(row["prompt"])].append(row)
    pairs = []
    for group in by_prompt.values():
        safe = [row for row in group if row["is_safe"]]
        unsafe = [row for row in group if not row["is_safe"]]
        if safe and unsafe:
            chosen = min(unsafe, key=lambda row: digest("answer", row["response"]))
            refusal = min(safe, key=lambda row: digest("answer", row["response"]))
            flags = chosen.get("category") or {}
            pairs.append(
                _safe_pair(
                    "beavertails",
                    prompt=chosen["prompt"],
                    safe=refusal["response"],
                    unsafe=chosen["response"],
                    category=next((category for category, flag in flags.items() if flag), None),
                )
            )
    return pairs


def _safe_rlhf(rows: Sequence[SafeRlhfRow]) -> list[SafePair]:
    pairs, contradictions = [], []
    for number, row in enumerate(rows, start=1):
        if row["is_response_0_safe"] == row["is_response_1_safe"]:
            continue
        safe_id = 0 if row["is_response_0_safe"] else 1
        if row["safer_response_id"] != safe_id:
            contradictions.append(number)
        answers = (row["response_0"], row["response_1"])
        pairs.append(
            _safe_pair(
                "safe_rlhf",
                prompt=row["prompt"],
                safe=answers[safe_id],
                unsafe=answers[1 - safe_id],
                category=None,
            )
        )
    if contradictions:
        named = ", ".join(map(str, contradictions[:NUM_NAMED_ROWS]))
        raise DataError.broken_rule(
            "data.path",
            "name the safe one of a safe and an unsafe answer as safer_response_id",
            f"the unsafe one in row {named} ({len(contradictions)} of {len(rows)} rows)",
            "Mend or remove these rows; they are counted from 1.",
        )
    return pairs


def _safe_pair(name: str, *, prompt: str, safe: str, unsafe: str, category: str | None) -> SafePair:
    return SafePair(
        id=digest(name, prompt, safe, unsafe)[:24],
        prompt=prompt,
        safe=safe,
        unsafe=unsafe,
        category=category,
    )


def _helpful_pair(chosen: str, rejected: str) -> Preference | None:
    prompt, _, chosen_answer = chosen.rpartition(ASSISTANT)
    rejected_prompt, _, rejected_answer = rejected.rpartition(ASSISTANT)
    if prompt != rejected_prompt or not chosen_answer.strip() or not rejected_answer.strip():
        return None
    one_turn = prompt.count(HUMAN) == 1 and prompt.lstrip().startswith(HUMAN.lstrip())
    request = prompt.partition(HUMAN)[2] if one_turn else prompt
    return _preference("helpful", request.strip(), chosen_answer.strip(), rejected_answer.strip())


def _preference(name: str, prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(
        id=digest(name, prompt, chosen, rejected)[:24],
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        flipped=False,
    )


def _first_distinct(prompts: Iterable[str], num: int, *, key: str, kind: str) -> list[str]:
    distinct: dict[str, str] = {}
    for prompt in prompts:
        distinct.setdefault(normalise(prompt), prompt)
    first = list(distinct.values())[:num]
    if len(first) < num:
        raise DataError.broken_rule(
            key,
            f"be at most {len(first)} (the distinct {kind} prompts of the test split)",
            num,
            "Lower it or bring a larger data set.",
        )
    return first


def _no_harmlessness_set(name: str) -> DataError:
    return DataError.broken_rule(
        "data.name", "be beavertails or safe_rlhf", repr(name), "Only these have unsafe answers."
    )
