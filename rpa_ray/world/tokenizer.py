"""The embedded world's tokenizer: byte-level BPE, written so that transformers and vLLM load it."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 1024
PAD_TOKEN = "<pad>"  # noqa: S105 - of a vocabulary
BOS_TOKEN = "<s>"  # noqa: S105 - of a vocabulary
EOS_TOKEN = "</s>"  # noqa: S105 - of a vocabulary


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of at most 1,024 tokens that gives every text back exactly.

    The special tokens have the ids 0 (pad), 1 (bos), 2 (eos); none is added when encoding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_tokens: int) -> None:
    """Write `tokenizer.json` and the configuration that Hugging Face loaders look for."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "padding_side": "left",
        "pad_token": PAD_TOKEN,
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
