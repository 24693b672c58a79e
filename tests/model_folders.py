"""Small random models in Hugging Face folders, whole or broken in one way."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
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
        "max_position_embeddings": 128,
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


TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}"
    "{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
)
"""Chat template that ends a turn with another token than the tokenizer's end of sequence."""


def save_turn_ending_model(folder: Path) -> Path:
    """Write a model that answers ``water``, then ``<|end|>``, then ``river`` without end.

    Its end of sequence is ``</s>``; the generation config declares both. ``<|end|>`` is an added
    token, but none of those that decoding leaves out.
    """
    tokenizer = small_tokenizer(TURNS)
    tokenizer.add_tokens([AddedToken(f"<|{name}|>") for name in ("user", "assistant", "end")])
    ids = tokenizer.get_vocab()
    model = LlamaForCausalLM(small_config(vocab_size=len(ids)))
    follower = {"<|assistant|>": "water", "water": "<|end|>"}
    with torch.no_grad():
        # Layers that add nothing: the last token alone says which is the next.
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name))
        for word, token in ids.items():
            model.model.embed_tokens.weight[token, token] = 1
            model.lm_head.weight[ids[follower.get(word, "river")], token] = 4
    model.generation_config.eos_token_id = [ids["</s>"], ids["<|end|>"]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
