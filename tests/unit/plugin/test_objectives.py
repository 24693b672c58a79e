import math
from typing import Any

import pytest
import torch
from fakes import VOCAB_SIZE, loss_of, token_batch, uniform_forward
from torch import Tensor

from rpa_ray.plugin.objectives import Judge, LanguageModel, RewardModel
from rpa_ray.types import LabelledBatch, LossTerm, PairBatch

TOKENS = token_batch([[1, 5, 6], [1, 7, 2]])
PAIRS = PairBatch(chosen=TOKENS, rejected=token_batch([[9, 5, 6], [9, 7, 2]]))
LABELLED = LabelledBatch(
    input_ids=TOKENS.input_ids, attention_mask=TOKENS.attention_mask, labels=torch.tensor([1, 0])
)


def value(term: LossTerm) -> float:
    return float(term.loss.detach())


def chosen_and_rejected(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Score texts that begin with 1 at 2 and -1, and the others at 1 and 1."""
    scores = [2.0, -1.0] if int(input_ids[0, 0]) == 1 else [1.0, 1.0]
    return torch.tensor(scores)[:, None]


def judged(scores: list[list[float]]) -> Any:
    return lambda input_ids, attention_mask: torch.tensor(scores)


def test_a_uniform_language_model_loses_log_of_the_vocabulary() -> None:
    term = loss_of(LanguageModel(), uniform_forward, TOKENS)
    assert value(term) == pytest.approx(math.log(VOCAB_SIZE), rel=1e-6)
    assert term.metrics == {"train/loss": pytest.approx(math.log(VOCAB_SIZE), rel=1e-6)}


def test_bradley_terry_of_two_pairs() -> None:
    # margins 1 and -2: (-log sigmoid(1) - log sigmoid(-2)) / 2 = (0.313262 + 2.126928) / 2
    term = loss_of(RewardModel(), chosen_and_rejected, PAIRS)
    assert value(term) == pytest.approx(1.220095, abs=1e-6)
    assert term.metrics["train/accuracy"] == 0.5


def test_cross_entropy_of_a_judge() -> None:
    # softmax of (0, log 3) is (1/4, 3/4): -log 3/4 for label 1; of (0, 0): -log 1/2 for label 0
    term = loss_of(Judge(), judged([[0.0, math.log(3)], [0.0, 0.0]]), LABELLED)
    assert value(term) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)


def test_accuracy_is_the_share_of_rows_whose_label_scores_highest() -> None:
    term = loss_of(Judge(), judged([[0.0, 1.0], [0.0, 1.0]]), LABELLED)
    assert term.metrics["train/accuracy"] == 0.5


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_losses_do_not_depend_on_the_number_of_ranks(num_ranks: int) -> None:
    # every rank holds the same rows, so that the mean over ranks is the loss of one
    language = loss_of(LanguageModel(), uniform_forward, TOKENS, num_ranks=num_ranks)
    assert value(language) == pytest.approx(math.log(VOCAB_SIZE), rel=1e-6)
    reward = loss_of(RewardModel(), chosen_and_rejected, PAIRS, num_ranks=num_ranks)
    assert value(reward) == pytest.approx(1.220095, abs=1e-6)
    assert reward.metrics["train/accuracy"] == 0.5
    judge = loss_of(Judge(), judged([[0.0, 0.0], [0.0, 0.0]]), LABELLED, num_ranks=num_ranks)
    assert value(judge) == pytest.approx(math.log(2), rel=1e-6)
    assert judge.metrics["train/accuracy"] == 0.5


@pytest.mark.parametrize(
    ("objective", "batch", "expected"),
    [(LanguageModel(), TOKENS, 4), (RewardModel(), PAIRS, 2), (Judge(), LABELLED, 2)],
)
def test_terms_are_marked_tokens_pairs_and_rows(objective: Any, batch: Any, expected: int) -> None:
    assert int(objective.num_terms(batch)) == expected
