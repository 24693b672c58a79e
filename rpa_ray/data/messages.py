"""Chat messages, lists of ``{role, content}``, as the texts that the formats are of."""

from collections.abc import Sequence
from typing import TypeAlias

from rpa_ray.config.errors import short
from rpa_ray.data.errors import Problem
from rpa_ray.data.schema import ASSISTANT, HUMAN, Column, Kind, Row

PROMPT = "prompt"
"""The column of a format that holds what the user asks; its other texts are answers."""

_REMEDY = (
    "A list is read as chat messages {role, content}: one of the user is a prompt, one of the "
    "assistant an answer. Write anything else as a text in place of the list."
)
_MARKS = {"user": HUMAN, "assistant": ASSISTANT}
_Turns: TypeAlias = list[tuple[str, str]]
"""Roles and texts: user and assistant in turn."""


class _Unfit(ValueError):
    """Messages that give no text of their column; says what they are."""


def with_texts(row: Row, columns: Sequence[Column]) -> Row:
    """Return the row with texts in place of messages; what gives no text is a :class:`Problem`.

    A prompt is one user message and an answer one assistant message, after the prompt or not: a
    row without a prompt has that of its answers. A dialogue is any number of turns, each a user
    message and an assistant message; one whose last answer stands beside its prompt begins with it.

    Example: ``{"safe": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}``
    becomes ``{"prompt": "a", "safe": "b"}``.
    """
    dialogues = [column.name for column in columns if column.kind is Kind.DIALOGUE]
    begins = bool(dialogues) and row.get(PROMPT) is not None
    if not (begins or any(isinstance(value, list) for value in row.values())):
        return row
    found = dict(row)
    # The prompt first: answers are compared with it.
    for column in sorted(columns, key=lambda column: column.name != PROMPT):
        value = row.get(column.name)
        may_be_messages = column.kind in (Kind.TEXT, Kind.DIALOGUE) or column.name == PROMPT
        if isinstance(value, list) and may_be_messages:
            try:
                found[column.name] = _text(column, _turns(value), found)
            except _Unfit as error:
                found[column.name] = Problem(str(error), _REMEDY)
    return _begun(found, dialogues) if begins else found


def _begun(row: Row, dialogues: Sequence[str]) -> Row:
    """Return the row with its prompt before the answers that stand alone, and nowhere else."""
    prompt = row[PROMPT]
    alone = {
        name: text
        for name in dialogues
        if isinstance(text := row.get(name), str) and HUMAN not in text
    }
    if alone and not (isinstance(prompt, str) and prompt.strip()):
        return row
    begin = str(prompt).rstrip().removesuffix(ASSISTANT.strip()).rstrip()
    begin = begin if HUMAN in begin else f"{HUMAN} {begin}"
    whole = {
        name: f"{begin}{ASSISTANT} {text.removeprefix(ASSISTANT).strip()}"
        for name, text in alone.items()
    }
    return {name: value for name, value in (row | whole).items() if name != PROMPT}


def _text(column: Column, turns: _Turns, row: Row) -> str:
    """Return what the messages of a column are; an answer gives the row its prompt."""
    dialogue = "".join(f"{_MARKS[role]} {text}" for role, text in turns)
    if column.kind is Kind.DIALOGUE:
        return dialogue
    wanted = "user" if column.name == PROMPT else "assistant"
    role, text = turns[-1]
    if role != wanted:
        raise _Unfit(f"messages that end with one of the {role}")
    if column.kind is Kind.LABEL:  # what dialogues begin with
        return dialogue
    if len(turns) > (1 if column.name == PROMPT else 2):
        raise _Unfit("messages of several turns")
    if len(turns) == 2 and row.setdefault(PROMPT, turns[0][1]) != turns[0][1]:
        raise _Unfit("messages that answer another prompt")
    return text


def _turns(messages: Sequence[object]) -> _Turns:
    """Return roles and texts of messages of user and assistant in turn."""
    turns: _Turns = []
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise _Unfit("a value of type list")
        role, text = message["role"], message["content"]
        if not isinstance(role, str) or role not in _MARKS:
            raise _Unfit(f"a message of the role {short(role)}")
        if not isinstance(text, str):
            raise _Unfit("a message whose content is no text")
        if turns and turns[-1][0] == role:
            raise _Unfit(f"two messages of the {role} one after the other")
        turns.append((role, text))
    if not turns:
        raise _Unfit("a value of type list")
    return turns
