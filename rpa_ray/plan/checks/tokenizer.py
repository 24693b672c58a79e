"""Whether the tokenizer of a model folder and its chat template can be read and used."""

import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rpa_ray.config import ConfigError
from rpa_ray.data.ends import turn_end_id
from rpa_ray.data.errors import last_line
from rpa_ray.deadline import answer_within

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PROBE = "What is a river?"
"""What every tokenizer and chat template can read."""
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Where transformers looks for a chat template, in this order."""
_TEMPLATE_LIMIT_S = 2.0
_BOTH = "a question and its answer"
_TEMPLATE_NAMES = ("<template>", "<unknown>")
"""What jinja calls a template that it was given as a text."""


def check_tokenizer(
    folder: Path, config: "PretrainedConfig", *, writes_chat: bool, key: str
) -> None:
    """Refuse a tokenizer that cannot be read or used with its model.

    Args:
        folder: A model folder with files that are whole.
        config: The config of its architecture.
        writes_chat: Whether it is asked in its own chat template; one without is not minded here.
        key: The config path that names it.

    Raises:
        ConfigError: with the file and what is wrong with it.
        DataError: its chat template is one that answers cannot be learned in.
    """
    tokenizer = _read(folder, key)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            key,
            "have a tokenizer with an end-of-sequence token",
            str(folder),
            "Set eos_token in its tokenizer_config.json.",
        )
    size = config.get_text_config().vocab_size
    used = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    largest = max(tokenizer.vocab_size - 1, *(i for i in used if i is not None))
    if largest >= size:
        raise ConfigError(
            key,
            f"have a tokenizer whose ids are below the model's vocab_size ({size})",
            f"{largest} in {folder}",
            "Take the tokenizer that belongs to it, or resize_token_embeddings and save it again.",
        )
    if writes_chat and tokenizer.chat_template is not None:
        _check_template(folder, tokenizer, key)


def _read(folder: Path, key: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
        ids = tokenizer(PROBE)["input_ids"]
    except Exception as error:  # whatever its files make its class do
        raise ConfigError(
            key,
            "have a tokenizer that transformers can read",
            str(folder),
            f"{last_line(error)}: check its files.",
        ) from error
    if not ids:
        raise ConfigError(
            key,
            f"have a tokenizer that reads {PROBE!r}",
            f"no token of it in {folder}",
            "Its vocabulary is lost: save model and tokenizer again.",
        )
    return tokenizer


def _check_template(folder: Path, tokenizer: "PreTrainedTokenizerBase", key: str) -> None:
    """Refuse a chat template that cannot write a question, or a question and its answer."""
    question = {"role": "user", "content": PROBE}
    answer = {"role": "assistant", "content": "Water that runs to the sea."}
    for turns, is_asked in (([question], True), ([question, answer], False)):
        write = partial(
            tokenizer.apply_chat_template, turns, tokenize=False, add_generation_prompt=is_asked
        )
        cause: Exception | None = None
        try:
            text = str(answer_within(_TEMPLATE_LIMIT_S, write))
        except Exception as error:  # a template is a program: it can raise whatever it likes
            cause, problem = error, f"{_line_of(error)}: {last_line(error)}"
        else:
            if all(turn["content"] in text for turn in turns):
                continue
            problem = f": it writes {text[:60]!r}"
        file = next((f for f in _TEMPLATE_FILES if (folder / f).is_file()), _TEMPLATE_FILES[0])
        raise ConfigError(
            key,
            f"have a chat template that can write {'a question' if is_asked else _BOTH}",
            f"{folder / file}{problem}",
            "Mend the template, or set data.template: plain_qa.",
        ) from cause
    turn_end_id(tokenizer)


def _line_of(error: Exception) -> str:
    """Return which line of a template an error comes from, as far as it says."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in _TEMPLATE_NAMES]
    return f", line {lines[-1]} of the template" if lines else ""
