from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import TURNS, save_turn_ending_model, small_tokenizer
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from rpa_ray.data.collate import encode_answered, encode_begun, encode_prompt
from rpa_ray.data.ends import answer_of, end_ids, with_end
from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import Template

PAD, BOS, EOS, UNK = range(4)
RIVER, WATER, USER, ASSISTANT, END = 9, 10, 11, 12, 13
CHAT, PLAIN = Template.MODEL_CHAT, Template.PLAIN_QA
ROW = Answered(prompt="river", answer="water")


def chat_tokenizer(behind_answer: str, *, is_special: bool = True) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose chat template writes a text behind the last answer."""
    tokenizer: Any = small_tokenizer(
        "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] }}"
        f"{{{{ {behind_answer!r} if m.role == 'assistant' else ' <|end|> ' }}}}{{% endfor %}}"
        "{{ '<|assistant|>' if add_generation_prompt }}"
    )
    names = ("user", "assistant", "end")
    tokens = [AddedToken(f"<|{name}|>", special=is_special) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=is_special)
    return tokenizer


@pytest.mark.parametrize(
    ("declared", "plain", "chat"),
    [
        (None, (EOS,), (END, EOS)),
        (EOS, (EOS,), (END, EOS)),
        (END, (EOS, END), (END, EOS)),
        ([EOS, END], (EOS, END), (END, EOS)),
        ([7, EOS], (EOS, 7), (END, EOS, 7)),
    ],
)
def test_answers_end_at_the_templates_mark_the_end_of_sequence_and_what_is_declared(
    declared: int | list[int] | None, plain: tuple[int, ...], chat: tuple[int, ...]
) -> None:
    generation = GenerationConfig(eos_token_id=declared)
    tokenizer = chat_tokenizer(" <|end|>\n")
    assert end_ids(tokenizer, PLAIN, generation) == plain
    assert end_ids(tokenizer, CHAT, generation) == chat


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize(
    ("behind_answer", "end", "row"),
    [
        (" <|end|>\n", END, [WATER, END]),
        ("<|end|> </s>", END, [WATER, END]),  # the end of the turn, then that of all turns
        (" </s>", EOS, [WATER, EOS]),
        ("\n", EOS, [WATER, EOS]),  # it writes none
        ("", EOS, [WATER, EOS]),
        (" Answer:", 5, [WATER, 5]),  # one token, though an ordinary one
    ],
)
def test_a_row_ends_with_the_mark_of_its_template_and_once(
    behind_answer: str, end: int, row: list[int], is_special: bool
) -> None:
    tokenizer = chat_tokenizer(behind_answer, is_special=is_special)
    assert end_ids(tokenizer, CHAT, GenerationConfig())[0] == end
    prompt_ids = encode_prompt(tokenizer, CHAT, ROW.prompt)
    encoded = encode_answered(tokenizer, CHAT, ROW, mask="response")
    assert encoded.ids == [*prompt_ids, *row]
    assert encoded.loss_mask == [False] * len(prompt_ids) + [True] * len(row)
    assert encode_begun(tokenizer, CHAT, ROW) == [WATER]


def test_a_plain_row_ends_with_the_end_of_sequence_whatever_the_chat_template() -> None:
    tokenizer = chat_tokenizer(" <|end|>\n")
    encoded = encode_answered(tokenizer, PLAIN, ROW, mask="response")
    assert encoded.ids[-2:] == [WATER, EOS]


@pytest.mark.parametrize("behind_answer", [" Question: what", " ###"])
def test_a_template_that_ends_an_answer_with_no_single_token_is_refused(
    behind_answer: str,
) -> None:
    tokenizer = chat_tokenizer(behind_answer)
    with pytest.raises(DataError, match=r"data\.template must be plain_qa .* got '.*tokens\. Add"):
        end_ids(tokenizer, CHAT, GenerationConfig())
    assert end_ids(tokenizer, PLAIN, GenerationConfig()) == (EOS,)


def test_a_mark_inside_an_answer_does_not_cut_what_follows_it() -> None:
    tokenizer = chat_tokenizer(" <|end|>\n")
    assert with_end(tokenizer, CHAT, [WATER, END, RIVER, END, BOS]) == [WATER, END, RIVER, END]


@pytest.mark.parametrize("is_special", [True, False])
def test_the_text_of_an_answer_is_without_what_ended_it(is_special: bool) -> None:
    tokenizer = chat_tokenizer(" <|end|>\n", is_special=is_special)
    assert answer_of(tokenizer, [WATER, RIVER, END], (END, EOS)) == "water river"
    assert answer_of(tokenizer, [WATER, RIVER], (END, EOS)) == "water river"
    assert answer_of(tokenizer, [END], (END, EOS)) == ""
    assert answer_of(tokenizer, [], (END, EOS)) == ""


def test_transformers_ends_an_answer_at_one_of_the_ids(tmp_path: Path) -> None:
    folder = save_turn_ending_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TURNS
    prompt_ids = encode_prompt(tokenizer, CHAT, "what is a river")
    answer = model.generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=8)
    answer_ids = answer[0, len(prompt_ids) :].tolist()
    ends = end_ids(tokenizer, CHAT, model.generation_config)
    assert answer_ids == [WATER, END]
    assert ends == (END, EOS)
    assert answer_of(tokenizer, answer_ids, ends) == "water"
