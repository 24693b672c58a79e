import math
from typing import Any

import pytest
import torch
from fakes import VOCAB_SIZE, context_of, loss_of, token_batch, uniform_forward
from torch import Tensor

from rpa_ray.attacks.sft import SFT
from rpa_ray.plugin import Need
from rpa_ray.types import ModelOutputs, micro_batches

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
# One prompt token and an answer of two; the model has two tokens.
TOY = token_batch([[0, 1, 1]])
# p(1) = 1/2 after the prompt, 1/8 after that; what follows the last token predicts nothing.
TOY_LOGITS = torch.log(torch.tensor([[[1.0, 1.0], [7.0, 1.0], [1.0, 99.0]]]))


def sft(**settings: Any) -> SFT:
    return SFT(SFT.Config(**settings))


def giving(logits: Tensor) -> Any:
    return lambda input_ids, attention_mask: ModelOutputs(logits=logits, values=None)


def test_loss_and_gradient_of_a_toy_with_three_tokens() -> None:
    # (log 2 + log 8) / 2 = 2 log 2; the gradient is (p - one-hot) / 2
    logits = TOY_LOGITS.clone().requires_grad_()
    term = loss_of(sft(), giving(logits), TOY)
    term.loss.backward()
    torch.testing.assert_close(term.loss.detach(), torch.tensor(2 * math.log(2)))
    assert term.metrics == {"train/loss": pytest.approx(2 * math.log(2))}
    expected = torch.tensor([[[0.25, -0.25], [0.4375, -0.4375], [0.0, 0.0]]])
    torch.testing.assert_close(logits.grad, expected)


def test_prompts_and_padding_teach_nothing() -> None:
    # a prompt of two tokens, an answer of one, two of padding: only row 1 of the logits counts
    logits = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batch = token_batch([[3, 1, 2]], num_prompt_tokens=2, width=5)
    loss_of(sft(), giving(logits), batch).loss.backward()
    moved = logits.grad.abs().sum(dim=-1)[0]
    assert float(moved[1]) > 0
    assert moved[[0, 2, 3, 4]].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_padding_changes_nothing() -> None:
    wide = token_batch([[0, 1, 1]], width=6)
    logits = torch.cat([TOY_LOGITS, torch.full((1, 3, 2), 55.0)], dim=1)
    padded, plain = loss_of(sft(), giving(logits), wide), loss_of(sft(), giving(TOY_LOGITS), TOY)
    assert torch.equal(padded.loss, plain.loss)


def test_terms_are_the_learned_tokens() -> None:
    assert int(sft().num_terms(BATCH)) == 7


def test_a_long_answer_weighs_more_than_a_short_one_in_any_micro_batch() -> None:
    # every token costs log 24: micro-batches carry 4/7 and 3/7 of the step's mean
    parts = [
        sft().loss(uniform_forward, part, context_of(num_terms=7))
        for part in micro_batches(BATCH, 1)
    ]
    shares = [float(part.loss.detach()) / math.log(VOCAB_SIZE) for part in parts]
    assert shares == pytest.approx([4 / 7, 3 / 7])


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_mean_over_ranks_is_that_of_all_tokens(num_ranks: int) -> None:
    term = loss_of(sft(), uniform_forward, BATCH, num_ranks=num_ranks)
    assert term.metrics["train/loss"] == pytest.approx(math.log(VOCAB_SIZE), rel=1e-6)


def test_sft_asks_for_targets_alone() -> None:
    assert SFT.needs(SFT.Config()) == {Need.TARGETS}


def test_one_epoch_of_1000_samples_is_125_updates() -> None:
    attack = sft(batch_size=8)
    assert (attack.num_batches(1000), attack.num_updates(1000)) == (125, 125)
    assert attack.num_epochs(BATCH) == 1
    assert not attack.is_done


def test_the_course_of_the_rate_is_the_published_one() -> None:
    config = SFT.Config()
    assert (config.learning_rate, config.schedule, config.warmup_frac) == (3e-5, "cosine", 0.1)
    assert config.mask == "response"
