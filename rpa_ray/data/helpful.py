"""Helpfulness dialogues: pairs of answers, and harmless prompts."""

import logging
from collections.abc import Sequence

from rpa_ray.data.order import digest
from rpa_ray.data.rows import Preference
from rpa_ray.data.schema import ASSISTANT, HUMAN, Row

logger = logging.getLogger(__name__)


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
