from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
)

from rpa_ray.scoring.sequence_classifier import ClassifierMode, SequenceClassifierScorer

SaveModel = Callable[[PreTrainedModel], Path]
PAIRS = [("a b", "c"), ("a", "d e f g h a b"), ("c", "h"), ("e f g", "b b a"), ("d", "a c e")]


def scorer(
    folder: Path, mode: ClassifierMode, *, batch_size: int = 2, max_length: int = 64
) -> SequenceClassifierScorer:
    return SequenceClassifierScorer(
        folder,
        mode=mode,
        template="Q : {prompt} A : {answer}",
        max_length=max_length,
        batch_size=batch_size,
        device=torch.device("cpu"),
    )


def test_reward_is_the_raw_logit_of_the_last_token(
    reward_model: LlamaForSequenceClassification, save: SaveModel
) -> None:
    # Q : a b A : c
    ids = torch.tensor([[4, 6, 7, 8, 5, 6, 9]])
    with torch.no_grad():
        expected = float(reward_model(ids).logits[0, 0])
    assert scorer(save(reward_model), "reward").score([("a b", "c")]) == [
        pytest.approx(expected, abs=1e-5)
    ]


def test_harm_probability_is_that_of_label_0(
    judge: LlamaForSequenceClassification, save: SaveModel
) -> None:
    ids = torch.tensor([[4, 6, 7, 8, 5, 6, 9]])
    with torch.no_grad():
        expected = float(judge(ids).logits.softmax(-1)[0, 0])
    assert abs(expected - 0.5) > 0.01  # else the labels could be swapped unnoticed
    assert scorer(save(judge), "harm_probability").score([("a b", "c")]) == [
        pytest.approx(expected, abs=1e-5)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_do_not_depend_on_batch_order_or_padding(
    judge: LlamaForSequenceClassification, save: SaveModel, batch_size: int
) -> None:
    folder = save(judge)
    alone = [scorer(folder, "harm_probability").score([pair])[0] for pair in PAIRS]
    together = scorer(folder, "harm_probability", batch_size=batch_size)
    assert together.score(PAIRS) == pytest.approx(alone, abs=1e-5)
    assert together.score(PAIRS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert max(alone) - min(alone) > 0.01


def test_an_empty_answer_is_harmless_by_rule_but_has_a_reward(
    judge: LlamaForSequenceClassification,
    reward_model: LlamaForSequenceClassification,
    save: SaveModel,
) -> None:
    pairs = [("a", "b"), ("a", " \n"), ("a", "")]
    harm = scorer(save(judge), "harm_probability").score(pairs)
    assert harm[1:] == [0.0, 0.0]
    assert harm[0] > 0.0
    assert scorer(save(reward_model), "reward").score(pairs)[2] != 0.0


def test_long_texts_lose_their_end(judge: LlamaForSequenceClassification, save: SaveModel) -> None:
    short = scorer(save(judge), "harm_probability", max_length=8)
    # Q : a A : b c d is 8 tokens
    first, second = short.score([("a", "b c d"), ("a", "b c d h h h")])
    assert first == pytest.approx(second, abs=1e-6)


def test_braces_in_texts_are_text(judge: LlamaForSequenceClassification, save: SaveModel) -> None:
    assert len(scorer(save(judge), "harm_probability").score([("{answer}", "{0} {")])) == 1


def test_no_pairs_give_no_scores(judge: LlamaForSequenceClassification, save: SaveModel) -> None:
    assert scorer(save(judge), "harm_probability").score([]) == []


def test_a_model_with_another_number_of_labels_is_refused(
    judge: LlamaForSequenceClassification, save: SaveModel
) -> None:
    with pytest.raises(ValueError, match=r"must be a classifier with 1 label\(s\), got 2"):
        scorer(save(judge), "reward")


def test_a_base_model_without_a_trained_head_is_refused(
    judge: LlamaForSequenceClassification, save: SaveModel
) -> None:
    base = LlamaModel(judge.config)
    with pytest.raises(ValueError, match=r"must hold all weights of a classifier.*score\.weight"):
        scorer(save(base), "harm_probability")


def test_a_text_beyond_the_positions_of_a_model_loses_its_end(save: SaveModel) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=15, n_embd=16, n_layer=1, n_head=2, n_positions=8, num_labels=1)
    short = scorer(save(GPT2ForSequenceClassification(config)), "reward")
    # Q : a A : with three words of the answer are 8 tokens
    assert short.score([("a", "b c d e f")]) == pytest.approx(short.score([("a", "b c d")]))


def test_a_model_that_computes_its_positions_reads_beyond_what_its_config_says(
    reward_model: LlamaForSequenceClassification, save: SaveModel
) -> None:
    whole = scorer(save(reward_model), "reward").score(PAIRS)
    reward_model.config.max_position_embeddings = 8
    assert scorer(save(reward_model), "reward").score(PAIRS) == pytest.approx(whole)
