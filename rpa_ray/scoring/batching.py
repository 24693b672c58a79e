"""Cuts texts into right-padded batches of similar length and puts the results back in order."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from rpa_ray.scoring.size import POSITION_TABLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

logger = logging.getLogger(__name__)


def in_batches(
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    pad_token_id: int,
    compute: Callable[[Tensor, Tensor, list[int]], list[T]],
) -> list[T]:
    """Return ``compute(input_ids, attention_mask, row numbers)`` of every row, in row order.

    Rows of similar length share a batch, so that little of it is padding.
    """
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    results: dict[int, T] = {}
    for chunk in _chunks(by_length, batch_size):
        input_ids, attention_mask = right_padded([rows[row] for row in chunk], pad_token_id)
        results |= zip(chunk, compute(input_ids, attention_mask, chunk), strict=True)
    return [results[row] for row in range(len(rows))]


def right_padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both [batch, seq], padded on the right."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that rows are padded with: padding, else the end of sequence (GPT-2), else 0.

    Padding is always masked, so it plays no part but in the width of a batch.
    """
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in named if token is not None)


def read_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> int:
    """Return how many tokens of a text are read: ``max_length``, or fewer where the model has less.

    That is where its positions are learned. Some tables have rows that no token takes (RoBERTa,
    OPT): there the tokenizer's own limit or the config tells.
    """
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(module, torch.nn.Embedding)
    ]
    if not tables:
        return max_length
    told = getattr(model.config.get_text_config(), "max_position_embeddings", max_length)
    return min(max_length, *tables, int(tokenizer.model_max_length), int(told))


def class_scores(model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return a classifier's raw scores [batch, num_labels] of rows that are padded on the right.

    They do not depend on what pads the rows. The head of a decoder reads the last token that is not
    the ``pad_token_id`` of its config: of a row that ends with that very token, as where padding is
    the end of sequence, it would read another. Then some other id pads the batch.
    """
    config = model.config.get_text_config()
    mask = attention_mask.bool()
    last = mask.sum(dim=1, keepdim=True) - 1
    used = {*input_ids.gather(1, last).flatten().tolist()}
    usual = config.pad_token_id
    candidates = (usual, *range(config.vocab_size))
    pad_id = next(token for token in candidates if token is not None and token not in used)
    try:
        config.pad_token_id = pad_id
        scores: Tensor = model(
            input_ids=input_ids.masked_fill(~mask, pad_id),
            attention_mask=attention_mask,
            use_cache=False,
        ).logits
    finally:
        config.pad_token_id = usual
    return scores


def cut_to(rows: Sequence[Sequence[int]], max_length: int) -> list[Sequence[int]]:
    """Return the rows cut on the right to ``max_length`` tokens; warns with their number."""
    num_cut = sum(len(row) > max_length for row in rows)
    if num_cut:
        logger.warning("%d of %d texts were cut to %d tokens", num_cut, len(rows), max_length)
    return [row[:max_length] for row in rows]


def check_template(template: str) -> None:
    """Refuse a template that does not hold a prompt and an answer once each.

    Raises:
        ValueError: If ``{answer}`` is not there exactly once.
    """
    if template.count("{answer}") != 1:
        raise ValueError(f"template must contain {{answer}} once, got {template!r}. Add it.")


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
