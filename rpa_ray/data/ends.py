"""Where an answer ends: one place that says which ids do, for all that generates or learns one."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rpa_ray.data.errors import DataError
from rpa_ray.data.template import Template, text_after_answer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def end_ids(
    tokenizer: "PreTrainedTokenizerBase", template: Template, generation: "GenerationConfig"
) -> tuple[int, ...]:
    """Return every id that ends an answer, each once.

    They are the mark with which the chat template ends a turn, where it is used, the tokenizer's
    end of sequence, and what the model's generation config declares.

    Example: a template that ends a turn with id 5, end of sequence 2 and ``eos_token_id: [2, 7]``
    give ``(5, 2, 7)``.

    Raises:
        DataError: The chat template ends a turn with something else than one token.
    """
    declared = generation.eos_token_id
    others = [declared] if isinstance(declared, int) else declared or []
    mark = _mark(tokenizer, template)
    own = [tokenizer.eos_token_id] if mark is None else [mark, tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(end) for end in (*own, *others)))


def with_end(
    tokenizer: "PreTrainedTokenizerBase", template: Template, answer_ids: Sequence[int]
) -> list[int]:
    """Return the ids of a finished answer up to its end, as the model learns it.

    A chat template's own mark ends it, and what the template writes behind that (a line end, the
    end of the conversation) is left out; where none is written the end of sequence is added.

    Raises:
        DataError: As :func:`end_ids` does.
    """
    mark = _mark(tokenizer, template)
    if mark is None:
        return [*answer_ids, int(tokenizer.eos_token_id)]
    if mark not in answer_ids:
        return [*answer_ids, mark]
    return list(answer_ids[: len(answer_ids) - answer_ids[::-1].index(mark)])


def answer_of(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], ends: Sequence[int]
) -> str:
    """Return the text of sampled ids, without the one that ended them and without special tokens.

    Args:
        tokenizer: The policy's tokenizer.
        token_ids: Ids of one answer.
        ends: What :func:`end_ids` returned.
    """
    kept = token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids
    return str(tokenizer.decode(list(kept), skip_special_tokens=True)).strip()


def _mark(tokenizer: "PreTrainedTokenizerBase", template: Template) -> int | None:
    """Return the id with which the template ends an answer; None where it writes none."""
    return turn_end_id(tokenizer) if template is Template.MODEL_CHAT else None


@lru_cache(maxsize=8)
def turn_end_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id with which the tokenizer's chat template ends a turn; None where with none.

    Raises:
        DataError: It ends one with something else than one token.
    """
    text = text_after_answer(tokenizer).strip()
    ids = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    known = [token for token in ids if token != tokenizer.unk_token_id]
    added = tokenizer.added_tokens_decoder
    marks = [token for token in known if token in added and added[token].content.strip()]
    if marks:
        return marks[0]
    if len(ids) > 1 or ids != known:
        raise DataError.broken_rule(
            "data.template",
            "be plain_qa for a chat template that ends an answer with something else than a token",
            f"{text!r}, {len(ids)} tokens",
            "Add the mark to the tokenizer, or set data.template: plain_qa.",
        )
    return ids[0] if ids else None
