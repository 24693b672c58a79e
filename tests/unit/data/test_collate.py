import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rpa_ray.data.collate import (
    TokenRow,
    collate_labelled,
    collate_pairs,
    collate_tokens,
    encode_answered,
    encode_begun,
    encode_prompt,
    encode_scored,
)
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import Template

WORDS = ("<pad>", "<s>", "</s>", "Question:", "Answer:", "mend", "cup", "glue", "it", "<u>", "<a>")
PAD, BOS, EOS, QUESTION, ANSWER, MEND, CUP, GLUE, IT, USER, ASSISTANT = range(len(WORDS))
CHAT = (
    "{% for m in messages %}{{ '<u> ' if m.role == 'user' else '<a> ' }}{{ m.content }}"
    "{{ ' </s>\n' if m.role == 'assistant' else ' ' }}{% endfor %}"
    "{{ '<a> ' if add_generation_prompt }}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT,
    )


ROW = Answered(prompt="mend cup", answer="glue it")
PROMPT_IDS = [BOS, QUESTION, MEND, CUP, ANSWER]


def test_plain_row_is_prompt_answer_and_end_with_the_loss_on_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = encode_answered(tokenizer, Template.PLAIN_QA, ROW, mask="response")
    assert row.ids == [*PROMPT_IDS, GLUE, IT, EOS]
    assert row.loss_mask == [False] * 5 + [True] * 3
    assert not row.truncated


def test_prompt_ids_are_a_prefix_of_the_row(tokenizer: PreTrainedTokenizerFast) -> None:
    for template in Template:
        prompt_ids = encode_prompt(tokenizer, template, ROW.prompt)
        row = encode_answered(tokenizer, template, ROW, mask="response")
        assert row.ids[: len(prompt_ids)] == prompt_ids
        assert row.loss_mask == [i >= len(prompt_ids) for i in range(len(row.ids))]


def test_chat_row_has_only_the_marks_its_template_writes(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = encode_answered(tokenizer, Template.MODEL_CHAT, ROW, mask="response")
    assert row.ids == [USER, MEND, CUP, ASSISTANT, GLUE, IT, EOS]


def test_mask_all_counts_every_token_that_something_predicts(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = encode_answered(tokenizer, Template.PLAIN_QA, ROW, mask="all")
    assert row.loss_mask == [False] + [True] * (len(row.ids) - 1)


def test_empty_answer_still_teaches_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    empty = Answered(prompt="mend cup", answer="")
    row = encode_answered(tokenizer, Template.PLAIN_QA, empty, mask="response")
    assert row.ids == [*PROMPT_IDS, EOS]
    assert row.loss_mask == [False] * 5 + [True]


def test_a_row_over_the_limit_loses_its_end_and_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode_answered(tokenizer, Template.PLAIN_QA, ROW, mask="response", max_tokens=6)
    assert row == TokenRow(ids=[*PROMPT_IDS, GLUE], loss_mask=[False] * 5 + [True], truncated=True)
    assert not encode_answered(
        tokenizer, Template.PLAIN_QA, ROW, mask="response", max_tokens=8
    ).truncated


def test_scored_row_is_the_plain_text_of_prompt_and_answer_without_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = encode_scored(tokenizer, "mend cup", " glue it")
    assert row == TokenRow(ids=[*PROMPT_IDS, GLUE, IT], loss_mask=[True] * 7)


def test_rows_are_padded_on_the_right() -> None:
    batch = collate_tokens(
        [
            TokenRow(ids=[5, 6, 7, 2], loss_mask=[False, False, True, True]),
            TokenRow(ids=[8, 2], loss_mask=[False, True]),
        ],
        pad_id=0,
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 2], [8, 2, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.loss_mask.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_padding_is_masked_even_where_a_real_token_has_the_same_id() -> None:
    batch = collate_tokens(
        [TokenRow(ids=[2, 2], loss_mask=[True, True]), TokenRow(ids=[2], loss_mask=[True])],
        pad_id=2,
    )
    assert batch.attention_mask.tolist() == [[True, True], [True, False]]


def test_both_sides_of_pairs_have_one_width() -> None:
    short, long = TokenRow(ids=[5], loss_mask=[True]), TokenRow(ids=[6, 7, 8], loss_mask=[True] * 3)
    batch = collate_pairs([short], [long], pad_id=0)
    assert batch.chosen.input_ids.tolist() == [[5, 0, 0]]
    assert batch.rejected.input_ids.tolist() == [[6, 7, 8]]


def test_pairs_with_a_missing_side_are_refused() -> None:
    row = TokenRow(ids=[5], loss_mask=[True])
    with pytest.raises(
        ValueError, match=r"^rejected must have as many rows as chosen, got 1 and 2"
    ):
        collate_pairs([row, row], [row], pad_id=0)


def test_labels_stand_beside_their_rows() -> None:
    rows = [TokenRow(ids=[5], loss_mask=[True]), TokenRow(ids=[6, 7], loss_mask=[True, True])]
    batch = collate_labelled(rows, [1, 0], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 0], [6, 7]]
    assert batch.labels.tolist() == [1, 0]
    assert batch.labels.dtype == torch.long


@pytest.mark.parametrize("template", Template)
def test_an_answer_that_may_go_on_is_the_finished_one_without_its_end(
    template: Template, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = Answered(prompt="mend cup", answer="glue it")
    begun = encode_begun(tokenizer, template, row)
    assert begun == [GLUE, IT]
    finished = encode_answered(tokenizer, template, row, mask="response")
    assert finished.ids[-3:] == [*begun, EOS]


def test_an_empty_answer_begins_with_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Answered(prompt="mend cup", answer="")
    assert encode_begun(tokenizer, Template.PLAIN_QA, row) == []
