"""Whatever pads the rows: a tokenizer with padding, one without, one that pads with its end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
)

from rpa_ray.learner.modules import load_score_model
from rpa_ray.scoring.batching import class_scores, padding_id, right_padded
from rpa_ray.scoring.sequence_classifier import SequenceClassifierScorer

SaveModel = Callable[[PreTrainedModel], Path]
EOS = 2
PADDINGS = {"its own": "<pad>", "its end": "</s>", "none": None}
ROWS = [[4, 6, EOS], [4, 6, 7, 8, EOS], [4, 6, 7], [9, 0]]
"""Some end with the end of sequence, one with what often pads."""
SIZES = {"vocab_size": 15, "pad_token_id": None, "eos_token_id": EOS, "num_labels": 2}
GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, **SIZES)
OPT = OPTConfig(
    hidden_size=16,
    word_embed_proj_dim=16,
    ffn_dim=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=32,
    **SIZES,
)


def set_padding(folder: Path, pad: str | None) -> None:
    """Give the tokenizer in a folder another padding."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ({"pad_token": "<pad>", "eos_token": "</s>"}, 0),
        ({"pad_token": None, "eos_token": "</s>"}, EOS),
        ({"pad_token": None, "eos_token": None}, 0),
    ],
)
def test_padding_is_the_tokenizers_else_its_end_else_0(
    names: dict[str, str | None],
    chosen: int,
    judge: LlamaForSequenceClassification,
    save: SaveModel,
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(save(judge))
    for name, token in names.items():
        setattr(tokenizer, name, token)
    assert padding_id(tokenizer) == chosen


@pytest.mark.parametrize("pad_id", [0, EOS, 7])
@pytest.mark.parametrize("named", [0, EOS, None])
@pytest.mark.parametrize(
    "model",
    [GPT2ForSequenceClassification(GPT2), OPTForSequenceClassification(OPT)],
    ids=["gpt2", "opt"],
)
def test_a_row_is_scored_at_its_last_token_whatever_pads_it(
    model: PreTrainedModel, named: int | None, pad_id: int
) -> None:
    model.eval()
    model.config.pad_token_id = None  # the head then reads the last token
    alone = [model(torch.tensor([row])).logits for row in ROWS]
    model.config.pad_token_id = named
    ids, mask = right_padded(ROWS, pad_id)
    torch.testing.assert_close(class_scores(model, ids, mask), torch.cat(alone))
    assert model.config.pad_token_id == named


@pytest.mark.parametrize("pad", PADDINGS.values(), ids=PADDINGS)
def test_scores_are_the_same_with_any_padding(
    pad: str | None, judge: LlamaForSequenceClassification, save: SaveModel
) -> None:
    folder = save(judge)
    set_padding(folder, pad)
    scorer = SequenceClassifierScorer(
        folder,
        mode="harm_probability",
        template="Q : {prompt} A : {answer}",
        max_length=64,
        batch_size=3,
        device=torch.device("cpu"),
    )
    answers = ["b </s>", "c d e </s>", "c d"]
    expected = []
    for answer in answers:
        ids = scorer._tokenizer(f"Q : a A : {answer}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = judge.model(ids).last_hidden_state[:, -1]
            expected.append(float(judge.score(hidden).softmax(-1)[0, 0]))
    found = scorer.score([("a", answer) for answer in answers])
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad_id", [EOS, 7])
def test_a_classifier_learns_the_same_with_any_padding(
    pad_id: int, judge: LlamaForSequenceClassification, save: SaveModel
) -> None:
    folder = save(judge)

    def step(pad_id: int) -> tuple[Tensor, dict[str, Tensor]]:
        module = load_score_model(
            folder, num_labels=2, pad_token_id=pad_id, seed=0, dtype=torch.float32
        )
        ids, mask = right_padded(ROWS, pad_id)
        loss = torch.nn.functional.cross_entropy(module(ids, mask), torch.tensor([0, 1, 1, 0]))
        loss.backward()
        return loss, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    torch.testing.assert_close(step(pad_id), step(0))
