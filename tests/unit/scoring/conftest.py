"""A word tokenizer and tiny judging models, saved as a user would have them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "Q", "A", ":", *"abcdefgh"]
SaveModel = Callable[[PreTrainedModel], Path]


def tiny_config(num_labels: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=num_labels,
    )


@pytest.fixture
def save(tmp_path: Path) -> SaveModel:
    """Save a model and the tokenizer in a new folder."""

    def save_model(model: PreTrainedModel) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        words = WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
        tokenizer = Tokenizer(words)
        tokenizer.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        ).save_pretrained(folder)
        return folder

    return save_model


def classifier(num_labels: int) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(tiny_config(num_labels)).eval()


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture
def judge() -> LlamaForSequenceClassification:
    return classifier(2)


@pytest.fixture
def reward_model() -> LlamaForSequenceClassification:
    return classifier(1)


@pytest.fixture
def causal_lm() -> LlamaForCausalLM:
    return language_model()
