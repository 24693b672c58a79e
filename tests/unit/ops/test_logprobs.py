import math

import pytest
import torch

from rpa_ray.ops import logprobs
from rpa_ray.ops.logprobs import (
    answer_logprobs,
    entropy,
    importance_weights,
    in_slices,
    next_token_logprobs,
    rows_at_once,
    token_logprobs,
)


def test_token_logprobs_are_those_of_the_softmax() -> None:
    # softmax of log(1, 2, 5) is 1/8, 2/8, 5/8
    logits = torch.log(torch.tensor([1.0, 2.0, 5.0])).expand(1, 3, 3)
    logprobs = token_logprobs(logits, torch.tensor([[0, 1, 2]]))
    expected = [math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)]
    torch.testing.assert_close(logprobs, torch.tensor([expected]))


def test_token_logprobs_of_bf16_logits_are_computed_in_fp32() -> None:
    # 1,000 equal logits: -log(1000) = -6.907755, which bf16 can only round to -6.90625
    logprobs = token_logprobs(torch.zeros(1, 1, 1000, dtype=torch.bfloat16), torch.tensor([[3]]))
    torch.testing.assert_close(logprobs, torch.tensor([[-6.907755]]), atol=1e-6, rtol=0)


def test_next_token_logprobs_stand_at_the_position_of_the_predicted_token() -> None:
    # row 0 predicts id 1 with 3/4, row 1 predicts id 0 with 1/4; the last row predicts nothing
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 3.0], [1.0, 999.0]]]))
    logprobs = next_token_logprobs(logits, torch.tensor([[1, 1, 0]]))
    expected = torch.tensor([[0.0, math.log(3 / 4), math.log(1 / 4)]])
    torch.testing.assert_close(logprobs, expected)


def test_padding_on_the_right_leaves_next_token_logprobs_unchanged() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    padded = next_token_logprobs(
        torch.cat([logits, torch.full((2, 3, 7), 1e4)], dim=1),
        torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], dim=1),
    )
    assert torch.equal(padded[:, :4], next_token_logprobs(logits, ids))


def test_gradient_of_a_logprob_is_one_hot_minus_softmax() -> None:
    logits = torch.log(torch.tensor([[[1.0, 2.0, 5.0]]])).requires_grad_()
    token_logprobs(logits, torch.tensor([[1]])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[-1 / 8, 6 / 8, -5 / 8]]]))


def test_entropy_is_log_vocabulary_when_uniform_and_zero_when_certain() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]]])
    torch.testing.assert_close(entropy(logits), torch.tensor([[math.log(4), 0.0]]))


def test_an_answers_logprob_is_the_sum_over_its_own_tokens() -> None:
    # every row predicts id 1 with 3/4 and id 0 with 1/4; what stands on padding is not read
    logits = torch.log(torch.tensor([1.0, 3.0])).expand(2, 4, 2).clone()
    logits[1, 2:] = float("nan")
    mask = torch.tensor([[False, False, True, True], [False, True, True, False]])
    found = answer_logprobs(logits, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]]), mask)
    expected = [math.log(3 / 4) + math.log(1 / 4), 2 * math.log(3 / 4)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_importance_weight_is_the_ratio_of_the_two_up_to_its_cap() -> None:
    # learner / engine = 1/2, 1, 2, 5 at a cap of 3
    engine = torch.tensor([[-3.0, -1.0, -2.0, -4.0]])
    learner = engine + torch.log(torch.tensor([[0.5, 1.0, 2.0, 5.0]]))
    weights = importance_weights(learner, engine, 3.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.0, 2.0, 3.0]]))


def test_an_importance_weight_far_beyond_its_cap_is_finite() -> None:
    weights = importance_weights(torch.zeros(1, 1), torch.tensor([[-500.0]]), 3.0)
    torch.testing.assert_close(weights, torch.tensor([[3.0]]))


def test_a_cap_of_0_corrects_nothing() -> None:
    weights = importance_weights(torch.tensor([[-1.0, -9.0]]), torch.tensor([[-2.0, -1.0]]), 0.0)
    assert weights.tolist() == [[1.0, 1.0]]


def test_slices_give_what_the_whole_gives_and_hold_less_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    ids = torch.randint(7, (3, 5), generator=generator)
    with torch.no_grad():
        whole = token_logprobs(logits, ids), entropy(logits)
    monkeypatch.setattr(logprobs, "_SLICE_BYTES", 4 * 7 * 4)
    sizes: list[int] = []

    def largest(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return rows.amax(dim=-1)

    with torch.no_grad():
        assert torch.equal(token_logprobs(logits, ids), whole[0])
        assert torch.equal(entropy(logits), whole[1])
        assert torch.equal(in_slices(largest, logits), logits.amax(dim=-1))
    assert sizes == [4, 4, 4, 3]


def test_rows_at_once_are_fewer_the_wider_and_the_larger_the_vocabulary() -> None:
    assert rows_at_once(64, 1024) == 4096
    assert rows_at_once(640, 152_064) == 2
    assert rows_at_once(10_000, 152_064) == rows_at_once(0, 2**40) == 1
