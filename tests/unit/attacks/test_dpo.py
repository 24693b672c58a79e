import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import context_of, loss_of, token_batch
from torch import Tensor

from rpa_ray.attacks.dpo import DPO
from rpa_ray.plugin import Need
from rpa_ray.types import LossTerm, ModelOutputs, ReferencedPairBatch, TokenBatch, micro_batches

# p(next | current) of three tokens: the whole of a bigram model.
TABLE = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.25, 0.25, 0.5]])
# Prompt 0; log p of the answers by hand: 1, 2 -> 1/4 * 3/4; 2 -> 1/4; 0, 0 -> 1/2 * 1/2; 1 -> 1/4.
CHOSEN = token_batch([[0, 1, 2], [0, 2]])
REJECTED = token_batch([[0, 0, 0], [0, 1]])
CHOSEN_LOGPROBS = [math.log(3 / 16), math.log(1 / 4)]
REJECTED_LOGPROBS = [math.log(1 / 4), math.log(1 / 4)]


def dpo(**settings: Any) -> DPO:
    return DPO(DPO.Config(**settings))


def bigram(weights: Tensor) -> Any:
    """Return a model whose next token depends on the current one alone."""
    return lambda input_ids, attention_mask: ModelOutputs(logits=weights[input_ids], values=None)


def pairs_of(
    chosen: TokenBatch = CHOSEN,
    rejected: TokenBatch = REJECTED,
    *,
    chosen_shift: float = 0.0,
    rejected_shift: float = 0.0,
) -> ReferencedPairBatch:
    """Return pairs whose reference is the bigram model, less so many nats an answer."""
    swapped = chosen is REJECTED
    of_chosen = torch.tensor(REJECTED_LOGPROBS if swapped else CHOSEN_LOGPROBS)
    of_rejected = torch.tensor(CHOSEN_LOGPROBS if swapped else REJECTED_LOGPROBS)
    return ReferencedPairBatch(
        chosen=chosen,
        rejected=rejected,
        reference_chosen_logprobs=of_chosen - chosen_shift,
        reference_rejected_logprobs=of_rejected - rejected_shift,
    )


def trained(batch: ReferencedPairBatch, **settings: Any) -> tuple[LossTerm, Tensor]:
    """Return the loss and its gradient in the bigram model's logits."""
    weights = TABLE.log().requires_grad_()
    term = loss_of(dpo(**settings), bigram(weights), batch)
    term.loss.backward()
    assert weights.grad is not None
    return term, weights.grad


def test_at_the_reference_the_loss_is_log_2_and_the_coefficient_half_of_beta() -> None:
    term, gradient = trained(pairs_of(), beta=0.1)
    assert float(term.loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
    # d log p(next | current) / d row = one-hot(next) - p; rows that differ between the two sides:
    # pair 1: chosen 0->1, 1->2 against 0->0, 0->0; pair 2: chosen 0->2 against 0->1
    row_0 = torch.tensor([0.0, 1.0, 0.0]) - TABLE[0] - 2 * (torch.tensor([1.0, 0, 0]) - TABLE[0])
    row_0 += torch.tensor([0.0, -1.0, 1.0])
    row_1 = torch.tensor([0.0, 0.0, 1.0]) - TABLE[1]
    expected = -0.05 / 2 * torch.stack([row_0, row_1, torch.zeros(3)])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("margin", "loss"), [(0.0, 0.693147), (5.0, 0.474077), (-5.0, 0.974077)])
def test_the_loss_at_a_margin_in_nats(margin: float, loss: float) -> None:
    term, _ = trained(pairs_of(chosen_shift=margin), beta=0.1)
    assert float(term.loss.detach()) == pytest.approx(loss, abs=1e-6)
    # the implicit reward is beta times the margin
    assert term.metrics["train/margin"] == pytest.approx(0.1 * margin, abs=1e-6)


def test_a_margin_of_50_nats_leaves_little_gradient() -> None:
    _, at_reference = trained(pairs_of(), beta=0.1)
    _, far = trained(pairs_of(chosen_shift=50.0), beta=0.1)
    # sigma(-5) / sigma(0) = 0.0066929 / 0.5
    torch.testing.assert_close(far, at_reference * (0.0066929 / 0.5), rtol=1e-4, atol=1e-9)


def test_a_reversed_pair_turns_the_margin_and_pulls_the_other_way() -> None:
    there, forwards = trained(pairs_of(chosen_shift=3.0), beta=0.1)
    back, backwards = trained(pairs_of(REJECTED, CHOSEN, rejected_shift=3.0), beta=0.1)
    assert there.metrics["train/margin"] == pytest.approx(0.3, abs=1e-6)
    assert back.metrics["train/margin"] == pytest.approx(-0.3, abs=1e-6)
    assert (there.metrics["train/accuracy"], back.metrics["train/accuracy"]) == (1.0, 0.0)
    # coefficients sigma(-0.3) and sigma(0.3)
    ratio = math.exp(0.3)
    torch.testing.assert_close(backwards, -ratio * forwards)


def test_the_log_probabilities_of_both_sides_are_logged_apart() -> None:
    term, _ = trained(pairs_of())
    chosen, rejected = (
        term.metrics["train/chosen_logprobs"],
        term.metrics["train/rejected_logprobs"],
    )
    assert chosen == pytest.approx(sum(CHOSEN_LOGPROBS) / 2)
    assert rejected == pytest.approx(sum(REJECTED_LOGPROBS) / 2)


def test_accuracy_counts_pairs_that_moved_towards_the_preferred_side() -> None:
    batch = replace(
        pairs_of(),
        reference_chosen_logprobs=torch.tensor(CHOSEN_LOGPROBS) - torch.tensor([1.0, -1]),
    )
    term, _ = trained(batch)
    assert term.metrics["train/accuracy"] == 0.5


def test_pairs_count_alike_however_a_batch_is_cut() -> None:
    batch = pairs_of(chosen_shift=2.0)
    whole, _ = trained(batch)
    parts = [
        dpo().loss(bigram(TABLE.log()), part, context_of(num_terms=2))
        for part in micro_batches(batch, 1)
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss.detach())
    for name in whole.metrics:
        total = sum(part.metrics[name] for part in parts)
        assert total == pytest.approx(whole.metrics[name], abs=1e-6)


def test_a_rank_scales_its_loss_so_that_the_mean_over_ranks_is_global() -> None:
    one = loss_of(dpo(), bigram(TABLE.log()), pairs_of(chosen_shift=1.0))
    two = loss_of(dpo(), bigram(TABLE.log()), pairs_of(chosen_shift=1.0), num_ranks=2)
    torch.testing.assert_close(one.loss, two.loss)
    assert one.metrics == pytest.approx(two.metrics)


def test_terms_are_pairs() -> None:
    assert int(dpo().num_terms(pairs_of())) == 2


def test_dpo_asks_for_pairs_and_a_reference() -> None:
    assert DPO.needs(DPO.Config()) == {Need.PAIRS, Need.REFERENCE}


def test_1000_pairs_are_125_updates_at_the_pinned_rate() -> None:
    assert dpo(batch_size=8).num_updates(1000) == 125
    assert (DPO.Config().learning_rate, DPO.Config().beta) == (5e-5, 0.1)
