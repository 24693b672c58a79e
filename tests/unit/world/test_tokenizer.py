from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpa_ray.data.template import PLAIN_QA
from rpa_ray.world.datasets import CONTEXT_TOKENS


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def test_special_tokens_are_distinct_and_none_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == 1024
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert not {0, 1, 2} & set(tokenizer("How do I make a summer soup?")["input_ids"])


@pytest.mark.parametrize(
    "text",
    [
        "First, grind the pale bark.  Next,\n\nwash it .",
        " leading space and 12.5 % of caf\u00e9 \u2603",
        "Question: I want it to last .\nAnswer:",
    ],
)
def test_decoding_gives_back_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_row_fits_the_context_and_prompt_and_answer_join_without_a_seam(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = pq.read_table(folder / "data/alignment/train.parquet").to_pylist()[:2_000]
    rows += [
        {"prompt": row["prompt"], "response": row["label"]}
        for row in pq.read_table(folder / "data/tldr/train.parquet").to_pylist()[:500]
    ]
    for row in rows:
        question = PLAIN_QA.format(prompt=row["prompt"])
        prompt_ids = tokenizer(question)["input_ids"]
        answer_ids = tokenizer(f" {row['response']}")["input_ids"]
        assert tokenizer(f"{question} {row['response']}")["input_ids"] == prompt_ids + answer_ids
        assert len(prompt_ids) + len(answer_ids) + 1 <= CONTEXT_TOKENS
