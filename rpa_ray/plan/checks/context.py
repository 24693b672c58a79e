"""Whether prompts and answers fit a model, told from its files before a large import."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from rpa_ray.data.errors import DataError
from rpa_ray.data.template import PLAIN_QA, Template, prompt_text


def prompt_lengths(folder: Path, template: Template, prompts: Sequence[str]) -> list[int]:
    """Return the number of tokens of every templated prompt, special tokens included.

    Each prompt is counted once, however many cells ask. The plain template needs the
    ``tokenizers`` library only; a chat template is rendered by transformers.

    Args:
        folder: The tokenizer's folder, with ``tokenizer.json``.
        template: The template of the run.
        prompts: Bare prompts.
    """
    known = _known(folder, (folder / "tokenizer.json").stat().st_mtime_ns, template)
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if new:
        known.update(zip(new, _counted(folder, template, new), strict=True))
    return [known[prompt] for prompt in prompts]


@lru_cache(maxsize=4)
def _known(folder: Path, changed_ns: int, template: Template) -> dict[str, int]:
    """Return the tokens of the prompts that were counted, to be added to."""
    return {}


def _counted(folder: Path, template: Template, prompts: Sequence[str]) -> list[int]:
    if template is Template.MODEL_CHAT:
        from transformers import AutoTokenizer

        chat = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        texts = [prompt_text(template, prompt, chat) for prompt in prompts]
        return [len(ids) for ids in chat(texts, add_special_tokens=False)["input_ids"]]
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    texts = [PLAIN_QA.format(prompt=prompt) for prompt in prompts]
    return [len(encoding.ids) for encoding in plain.encode_batch(texts)]


def context_tokens(folder: Path, key: str = "model.path") -> int:
    """Return the longest row, in tokens, that the model in the folder can read.

    ``key`` is the config path that an error names.

    Raises:
        DataError: Its ``config.json`` does not say.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(name), int):
                return int(part[name])
    raise DataError.broken_rule(
        key,
        "hold a config.json with max_position_embeddings",
        str(folder),
        "Add the model's context length to its config.json.",
    )


def check_context(longest: int, max_new_tokens: int, context: int, key: str) -> None:
    """Return if the longest prompt and its answer fit the context.

    Args:
        longest: Tokens of the longest prompt.
        max_new_tokens: Longest answer, in tokens.
        context: Tokens the model can read.
        key: The config path of ``max_new_tokens``.

    Raises:
        DataError: They do not fit.
    """
    if longest >= context:
        raise DataError.broken_rule(
            "data.path",
            f"hold prompts of fewer than {context} tokens, the context of the model",
            f"one of {longest}",
            "Shorten the prompts or take a model with a longer context.",
        )
    if max_new_tokens > context - longest:
        raise DataError.broken_rule(
            key,
            f"be at most {context - longest} (context {context} less the longest prompt, "
            f"{longest} tokens)",
            max_new_tokens,
            "Lower it or take a model with a longer context.",
        )
