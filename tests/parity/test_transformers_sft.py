"""Our SFT against the loss that a transformers model computes itself from labels."""

from typing import Literal

import pytest
import torch
from fakes import forward_of, loss_of, tiny_llama
from tiny_models import TOLERANCE, assert_same_gradients, gradients_of, word_tokenizer
from torch import Tensor

from rpa_ray.attacks.sft import SFT
from rpa_ray.data.collate import collate_tokens, encode_answered
from rpa_ray.data.rows import Answered
from rpa_ray.data.template import Template
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.types import LossTerm, TokenBatch

Mask = Literal["response", "all"]

ROWS = [("w5 w6", "w7 w8 w9"), ("w10", "w11"), ("w12 w13 w14", "w15 w16 w17 w18 w19")]
IGNORED = -100
"""The label of a position without a loss."""


def batch_of(mask: Mask) -> TokenBatch:
    tokenizer = word_tokenizer()
    rows = [
        encode_answered(
            tokenizer, Template.PLAIN_QA, Answered(prompt=prompt, answer=answer), mask=mask
        )
        for prompt, answer in ROWS
    ]
    return collate_tokens(rows, tokenizer.pad_token_id)


def our_loss(batch: TokenBatch) -> tuple[LossTerm, dict[str, Tensor]]:
    module = PolicyModel(tiny_llama(tied=False), value_head_seed=None)
    term = loss_of(SFT(SFT.Config()), forward_of(module), batch)
    term.loss.backward()
    return term, gradients_of(module.policy)


def transformers_loss(batch: TokenBatch, labelled: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss on the labels at ``labelled``; transformers never predicts position 0."""
    model = tiny_llama(tied=False)
    labels = batch.input_ids.masked_fill(~labelled, IGNORED)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
    output.loss.backward()
    return output.loss.detach(), gradients_of(model)


def labelled_by(mask: Mask, batch: TokenBatch) -> Tensor:
    """Return the positions that this mask names, found without the loss mask."""
    if mask == "all":
        return batch.attention_mask
    tokenizer = word_tokenizer()
    answers = torch.tensor([len(tokenizer(answer)["input_ids"]) + 1 for _, answer in ROWS])
    ends = batch.attention_mask.sum(dim=-1)
    positions = torch.arange(batch.input_ids.shape[1])
    return (positions >= (ends - answers)[:, None]) & batch.attention_mask


@pytest.mark.parametrize("mask", ["response", "all"])
def test_loss_and_gradients_are_those_of_transformers(mask: Mask) -> None:
    batch = batch_of(mask)
    term, gradients = our_loss(batch)
    loss, expected = transformers_loss(batch, labelled_by(mask, batch))
    torch.testing.assert_close(term.loss.detach(), loss, **TOLERANCE)
    assert_same_gradients(gradients, expected)


def test_the_other_mask_gives_another_loss() -> None:
    batch = batch_of("response")
    term, _ = our_loss(batch)
    loss, _ = transformers_loss(batch, labelled_by("all", batch))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(term.loss.detach(), loss, **TOLERANCE)
