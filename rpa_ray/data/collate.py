"""From rows to token ids, and from token rows to right-padded batches. The only torch in `data`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rpa_ray.data.ends import with_end
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import (
    PLAIN_QA_ANSWERED,
    Template,
    answer_text,
    begun_answer_text,
    prompt_text,
)
from rpa_ray.types import Completion, LabelledBatch, PairBatch, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One row of token ids before padding.

    Example: prompt ids ``[5, 6]``, answer ids ``[7]``, end-of-sequence 2 and mask ``response`` give
    ``ids [5, 6, 7, 2]`` and ``loss_mask [False, False, True, True]``.
    """

    ids: list[int]
    loss_mask: list[bool]
    """True where the token is one to predict; same length as ``ids``."""
    truncated: bool = False
    """True where the row lost its end."""


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", template: Template, prompt: str
) -> list[int]:
    """Return the ids after which the model answers.

    The plain template gets the tokenizer's own special tokens (a begin mark where it has one);
    a chat template writes its own.
    """
    text = prompt_text(template, prompt, tokenizer)
    return _ids(tokenizer, text, special=template is Template.PLAIN_QA)


def encode_answered(
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    row: Answered,
    *,
    mask: Literal["response", "all"],
    max_tokens: int | None = None,
) -> TokenRow:
    """Return prompt and finished answer as one row.

    Prompt and answer are tokenised apart, so the ids of :func:`encode_prompt` are a prefix of the
    row, as they are in a rollout.

    Args:
        tokenizer: The policy's tokenizer.
        template: The template of the run.
        row: A bare prompt and its answer.
        mask: ``response`` counts the loss on the answer and its end mark, ``all`` on every token
            but the row's first, which nothing predicts.
        max_tokens: A longer row loses its end; None keeps it whole.
    """
    prompt_ids = encode_prompt(tokenizer, template, row.prompt)
    answer = answer_text(template, row.prompt, row.answer, tokenizer)
    answer_ids = with_end(tokenizer, template, _ids(tokenizer, answer, special=False))
    counts = [mask == "all"] * len(prompt_ids) + [True] * len(answer_ids)
    return _row(prompt_ids + answer_ids, [False, *counts[1:]], max_tokens)


def encode_begun(
    tokenizer: "PreTrainedTokenizerBase", template: Template, row: Answered
) -> list[int]:
    """Return the ids of an answer that may still go on: what follows those of the prompt."""
    text = begun_answer_text(template, row.prompt, row.answer, tokenizer)
    return _ids(tokenizer, text, special=False)


def encode_scored(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str, *, max_tokens: int | None = None
) -> TokenRow:
    """Return prompt and answer as a reward model or a judge reads them, whatever policy wrote them.

    One text, tokenised as a whole with the scorer's own special tokens; every token counts.
    """
    text = PLAIN_QA_ANSWERED.format(prompt=prompt, answer=answer.strip())
    ids = _ids(tokenizer, text, special=True)
    return _row(ids, [True] * len(ids), max_tokens)


def collate_tokens(
    rows: Sequence[TokenRow], pad_id: int, *, num_tokens: int | None = None
) -> TokenBatch:
    """Return the rows padded on the right to the longest of them, or to ``num_tokens``."""
    width = max(len(row.ids) for row in rows) if num_tokens is None else num_tokens
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.ids)
        input_ids[index, :length] = torch.tensor(row.ids, dtype=torch.long)
        attention_mask[index, :length] = True
        loss_mask[index, :length] = torch.tensor(row.loss_mask, dtype=torch.bool)
    return TokenBatch(input_ids=input_ids, attention_mask=attention_mask, loss_mask=loss_mask)


def collate_pairs(
    chosen: Sequence[TokenRow], rejected: Sequence[TokenRow], pad_id: int
) -> PairBatch:
    """Return both sides row by row, padded to one width so that they can be stacked."""
    if len(chosen) != len(rejected):
        raise ValueError(
            f"rejected must have as many rows as chosen, got {len(rejected)} and {len(chosen)}. "
            "Pass both answers of every pair."
        )
    width = max(len(row.ids) for row in (*chosen, *rejected))
    return PairBatch(
        chosen=collate_tokens(chosen, pad_id, num_tokens=width),
        rejected=collate_tokens(rejected, pad_id, num_tokens=width),
    )


def collate_labelled(rows: Sequence[TokenRow], labels: Sequence[int], pad_id: int) -> LabelledBatch:
    """Return the padded rows with one class label each; loss masks play no part."""
    tokens = collate_tokens(rows, pad_id)
    return LabelledBatch(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        labels=torch.tensor(labels, dtype=torch.long),
    )


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]


def _row(ids: list[int], loss_mask: list[bool], max_tokens: int | None) -> TokenRow:
    return TokenRow(
        ids=ids[:max_tokens],
        loss_mask=loss_mask[:max_tokens],
        truncated=max_tokens is not None and len(ids) > max_tokens,
    )


def collate_completions(
    completions: Sequence[Completion], pad_token_id: int
) -> tuple[TokenBatch, Tensor]:
    """Return prompt plus answer rows, right-padded, and the engine's log-probabilities.

    The loss mask marks the answer's tokens, the one that ends it included.
    """
    length = max(len(c.prompt.token_ids) + len(c.token_ids) for c in completions)
    shape = (len(completions), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    logprobs = torch.zeros(shape)
    for row, completion in enumerate(completions):
        start = len(completion.prompt.token_ids)
        end = start + len(completion.token_ids)
        input_ids[row, :end] = torch.tensor(completion.prompt.token_ids + completion.token_ids)
        attention_mask[row, :end] = True
        loss_mask[row, start:end] = True
        logprobs[row, start:end] = torch.tensor(completion.logprobs)
    tokens = TokenBatch(input_ids=input_ids, attention_mask=attention_mask, loss_mask=loss_mask)
    return tokens, logprobs
