import subprocess
import sys

import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.template import (
    MAX_ADDED_CHARS,
    PLAIN_QA_ANSWERED,
    Template,
    answer_text,
    prompt_text,
)


class BracketTokenizer:
    """Writes ``<u>..</u><a>..</a>`` and a newline."""

    chat_template: object = "brackets"

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        /,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        assert not tokenize
        tags = [f"<{turn['role'][0]}>{turn['content']}</>" for turn in conversation]
        return "".join(tags) + ("<a>" if add_generation_prompt else "\n")


class BareTokenizer(BracketTokenizer):
    """Has no chat template."""

    chat_template = None


class RewritingTokenizer(BracketTokenizer):
    """Leaves the question out once it is answered."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], /, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        return super().apply_chat_template(
            conversation[-1:], tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )


class LongTokenizer(BracketTokenizer):
    """Writes a text of its own around the conversation, so that it has ``num_added`` characters."""

    def __init__(self, num_added: int) -> None:
        self.num_added = num_added

    def apply_chat_template(
        self, conversation: list[dict[str, str]], /, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        return "".join(turn["content"] for turn in conversation) + "x" * self.num_added


def test_plain_template_keeps_braces_and_joins_by_one_space() -> None:
    tokenizer = BareTokenizer()
    start = prompt_text(Template.PLAIN_QA, "use {x}?", tokenizer)
    answer = answer_text(Template.PLAIN_QA, "use {x}?", " yes {y} ", tokenizer)
    assert start + answer == "Question: use {x}?\nAnswer: yes {y}"
    assert start + answer == PLAIN_QA_ANSWERED.format(prompt="use {x}?", answer="yes {y}")


def test_plain_empty_answer_adds_nothing() -> None:
    assert answer_text(Template.PLAIN_QA, "p", " ", BareTokenizer()) == ""


def test_chat_answer_ends_with_the_end_mark_of_the_template() -> None:
    tokenizer = BracketTokenizer()
    assert prompt_text(Template.MODEL_CHAT, "hi", tokenizer) == "<u>hi</><a>"
    assert answer_text(Template.MODEL_CHAT, "hi", "yes", tokenizer) == "yes</>"


def test_chat_template_is_refused_for_a_tokenizer_without_one() -> None:
    with pytest.raises(DataError, match=r"^data\.template must be plain_qa .*, got model_chat\."):
        prompt_text(Template.MODEL_CHAT, "hi", BareTokenizer())


def test_chat_template_that_rewrites_an_answered_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="rewrites the prompt"):
        answer_text(Template.MODEL_CHAT, "hi", "yes", RewritingTokenizer())


def test_importing_the_package_loads_no_large_library() -> None:
    heavy = {"torch", "transformers", "datasets", "huggingface_hub", "tokenizers", "ray", "vllm"}
    code = f"import sys, rpa_ray.data; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_a_chat_template_adds_is_bounded_whatever_the_prompt() -> None:
    prompt = "long " * MAX_ADDED_CHARS
    text = prompt_text(Template.MODEL_CHAT, prompt, LongTokenizer(MAX_ADDED_CHARS))
    assert len(text) == len(prompt) + MAX_ADDED_CHARS
    with pytest.raises(DataError, match=r"^data\.template must be plain_qa .*, got 65,537\. "):
        prompt_text(Template.MODEL_CHAT, "hi", LongTokenizer(MAX_ADDED_CHARS + 1))
