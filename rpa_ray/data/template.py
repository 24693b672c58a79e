"""How a bare prompt and its answer become the text that a model reads: one place for the format."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from rpa_ray.data.errors import DataError

PLAIN_QA = "Question: {prompt}\nAnswer:"
"""The plain prompt; the answer follows after one space."""

PLAIN_QA_ANSWERED = PLAIN_QA + " {answer}"
"""Prompt and answer as a reward model, a cost model and a judge read them."""

MAX_ADDED_CHARS = 2**16
"""What a chat template, a program that comes with a model, may add to the turns, in characters."""


class Template(StrEnum):
    """The ids of ``data.template``."""

    PLAIN_QA = "plain_qa"
    MODEL_CHAT = "model_chat"
    """The chat template that comes with the tokenizer."""


class ChatTokenizer(Protocol):
    """What a chat template needs of a tokenizer."""

    @property
    def chat_template(self) -> object:
        """The template, None where the tokenizer has none."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        /,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> object:
        """Return the conversation as text where ``tokenize`` is False."""
        ...


def prompt_text(template: Template, prompt: str, tokenizer: ChatTokenizer) -> str:
    """Return the text after which the model answers.

    Raises:
        DataError: The template is ``model_chat`` and the tokenizer has no chat template, or one
            that adds more than :data:`MAX_ADDED_CHARS` characters.
    """
    if template is Template.PLAIN_QA:
        return PLAIN_QA.format(prompt=prompt)
    return _chat(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def answer_text(template: Template, prompt: str, answer: str, tokenizer: ChatTokenizer) -> str:
    """Return what follows ``prompt_text`` for a finished answer.

    A chat template marks the end of the turn in its own way, and that mark is included; the plain
    template has none. Where the answer ends, and what is added, says :mod:`rpa_ray.data.ends`.

    Raises:
        DataError: As :func:`prompt_text` does, or the answered conversation does not begin with the
            unanswered one.
    """
    answer = answer.strip()
    if template is Template.PLAIN_QA:
        return f" {answer}" if answer else ""
    start = prompt_text(template, prompt, tokenizer)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    answered = _chat(tokenizer, turns, add_generation_prompt=False)
    if not answered.startswith(start):
        raise DataError.broken_rule(
            "data.template",
            "be plain_qa for a chat template that rewrites the prompt once it is answered",
            Template.MODEL_CHAT,
            "Set data.template: plain_qa.",
        )
    return answered.removeprefix(start).rstrip()


def begun_answer_text(
    template: Template, prompt: str, answer: str, tokenizer: ChatTokenizer
) -> str:
    """Return what follows ``prompt_text`` for an answer that may still go on: without end mark.

    Raises:
        DataError: As :func:`answer_text` does.
    """
    answer = answer.strip()
    if not answer:
        return ""
    begun, found, _ = answer_text(template, prompt, answer, tokenizer).partition(answer)
    return begun + found


def text_after_answer(tokenizer: ChatTokenizer) -> str:
    """Return what the chat template writes behind an answer that ends a conversation.

    Raises:
        DataError: As :func:`prompt_text` does for ``model_chat``.
    """
    answer = "Water that runs to the sea."
    turns = [
        {"role": "user", "content": "What is a river?"},
        {"role": "assistant", "content": answer},
    ]
    _, found, after = _chat(tokenizer, turns, add_generation_prompt=False).rpartition(answer)
    return after if found else ""


def _chat(
    tokenizer: ChatTokenizer, turns: Sequence[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    if tokenizer.chat_template is None:
        raise DataError.broken_rule(
            "data.template",
            "be plain_qa for a tokenizer without a chat template",
            Template.MODEL_CHAT,
            "Set data.template: plain_qa or take a chat model.",
        )
    text = str(
        tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    )
    num_added = len(text) - sum(len(turn["content"]) for turn in turns)
    if num_added > MAX_ADDED_CHARS:
        raise DataError.broken_rule(
            "data.template",
            f"be plain_qa for a chat template that adds more than {MAX_ADDED_CHARS:,} characters",
            f"{num_added:,}",
            "Set data.template: plain_qa or take another model.",
        )
    return text
