"""Small random models in Hugging Face folders, whole or broken in one way."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "Question:",
    "Answer:",
    "what",
    "is",
    "a",
    "river",
    "water",
]
CHAT = "{% for m in messages %}\n{{ m['content'] }}</s>\n{% endfor %}"


def small_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of some whole words."""
    model = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    )


def small_config(**settings: Any) -> LlamaConfig:
    """Return a Llama of 2 layers of width 64 with 2 heads; one has to be told otherwise."""
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**(sizes | settings))


def save_language_model(
    folder: Path, *, chat_template: str | None = None, shard: str = "1GB", **settings: Any
) -> Path:
    """Write a language model of :func:`small_config` and its tokenizer; return the folder."""
    model = LlamaForCausalLM(small_config(**settings))
    return save(folder, model, chat_template=chat_template, shard=shard)


def save_classifier(folder: Path, num_labels: int) -> Path:
    """Write a classifier of :func:`small_config` and its tokenizer; return the folder."""
    return save(folder, LlamaForSequenceClassification(small_config(num_labels=num_labels)))


def save(
    folder: Path, model: PreTrainedModel, *, chat_template: str | None = None, shard: str = "1GB"
) -> Path:
    """Write a model and the small tokenizer; return the folder."""
    torch.manual_seed(0)
    model.save_pretrained(folder, max_shard_size=shard)
    small_tokenizer(chat_template).save_pretrained(folder)
    return folder


def edit_json(file: Path, **keys: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    tree = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))
