import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import (
    PolicyLoss,
    classification_loss,
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    kl_loss,
    pairwise_reward_loss,
    sft_loss,
)

NAN = float("nan")
KEEP_TWO = torch.ones(1, 2, dtype=torch.bool)


def policy_loss(
    policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, tokens: int, ranks: int = 1
) -> Tensor:
    return clipped_policy_loss(
        policy, old, advantages, mask, clip_range=0.2, num_global_tokens=tokens, num_ranks=ranks
    ).loss


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, tokens: int, ranks: int = 1
) -> Tensor:
    return clipped_value_loss(
        values, old, returns, mask, clip_range=0.2, num_global_tokens=tokens, num_ranks=ranks
    )


def nll(
    policy: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, tokens: int, ranks: int = 1
) -> Tensor:
    return sft_loss(policy, mask, num_global_tokens=tokens, num_ranks=ranks)


TokenLoss = Callable[..., Tensor]
TOKEN_LOSSES = [policy_loss, value_loss, nll]


def test_clipped_policy_loss_stops_rewarding_a_ratio_above_the_clip_range() -> None:
    # ratios 1 and e, the second cut to 1.2: -(1.0 + 1.2) / 2
    logprobs = torch.tensor([[0.0, 1.0]], requires_grad=True)
    result = clipped_policy_loss(
        logprobs,
        torch.zeros(1, 2),
        torch.ones(1, 2),
        KEEP_TWO,
        clip_range=0.2,
        num_global_tokens=2,
        num_ranks=1,
    )
    result.loss.backward()
    torch.testing.assert_close(result.loss, torch.tensor(-1.1))
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.5, 0.0]]))
    assert result.clip_frac.item() == 0.5
    assert result.approx_kl.item() == -0.5
    assert result.ratio.item() == pytest.approx((1 + math.e) / 2)
    assert not result.skipped.item()


def test_clipped_policy_loss_still_punishes_a_ratio_above_the_clip_range() -> None:
    # A = -1 at ratio e is not cut, A = -1 at ratio 0.5 is held at 0.8: (e + 0.8) / 2
    loss = policy_loss(
        torch.tensor([[1.0, math.log(0.5)]]), torch.zeros(1, 2), -torch.ones(1, 2), KEEP_TWO, 2
    )
    torch.testing.assert_close(loss, torch.tensor((math.e + 0.8) / 2))


@pytest.mark.parametrize("log_ratio", [-1.0, 0.1, 1.0])
def test_within_the_clamp_the_unclamped_loss_is_the_same(log_ratio: float) -> None:
    gradients = []
    for clamped in (True, False):
        logprobs = torch.tensor([[log_ratio, 0.0]], requires_grad=True)
        result = clipped_policy_loss(
            logprobs,
            torch.zeros(1, 2),
            torch.tensor([[-1.0, 2.0]]),
            KEEP_TWO,
            clip_range=0.2,
            num_global_tokens=2,
            num_ranks=1,
            clamped=clamped,
        )
        result.loss.backward()
        assert logprobs.grad is not None
        gradients.append([result.loss.detach(), logprobs.grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_unclamped_a_ratio_that_overflows_is_nan_whatever_the_guard_does() -> None:
    def result_of(*, clamped: bool) -> PolicyLoss:
        return clipped_policy_loss(
            torch.tensor([[100.0, 0.0]]),
            torch.zeros(1, 2),
            -torch.ones(1, 2),
            KEEP_TWO,
            clip_range=0.2,
            num_global_tokens=2,
            num_ranks=1,
            clamped=clamped,
        )

    exact, ours = result_of(clamped=False), result_of(clamped=True)
    assert exact.skipped.item() and ours.skipped.item()
    assert exact.loss.isnan().item()
    assert ours.loss.item() == 0.0


def test_clip_fraction_counts_only_moves_that_the_advantage_asked_for() -> None:
    # ratios 2, 2, 1/2, 1/2: clipped where A > 0 above and A < 0 below, so 2 of 4
    result = clipped_policy_loss(
        torch.tensor([[2.0, 2.0, 0.5, 0.5]]).log(),
        torch.zeros(1, 4),
        torch.tensor([[1.0, -1.0, 1.0, -1.0]]),
        torch.ones(1, 4, dtype=torch.bool),
        clip_range=0.2,
        num_global_tokens=4,
        num_ranks=1,
    )
    assert result.clip_frac.item() == 0.5
    # -(1.2 - 2 + 0.5 - 0.8) / 4
    assert result.loss.item() == pytest.approx(0.275)


def test_before_the_first_update_the_ratio_is_exactly_one_and_nothing_is_clipped() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 40, generator=generator)
    ids = torch.randint(40, (3, 9), generator=generator)
    advantages = torch.randn(3, 9, generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    result = clipped_policy_loss(
        next_token_logprobs(logits.clone().requires_grad_(), ids),
        next_token_logprobs(logits, ids),
        advantages,
        mask,
        clip_range=0.2,
        num_global_tokens=16,
        num_ranks=1,
    )
    assert result.ratio.item() == 1.0
    assert result.clip_frac.item() == 0.0
    assert result.approx_kl.item() == 0.0
    torch.testing.assert_close(result.loss, -advantages[mask].mean())


def test_mean_ratio_above_ten_switches_the_loss_off_and_is_reported() -> None:
    # A = -1 is not clipped from above, so without the guard the gradient would be e^3 a token
    logprobs = torch.full((1, 2), 3.0, requires_grad=True)
    result = clipped_policy_loss(
        logprobs,
        torch.zeros(1, 2),
        -torch.ones(1, 2),
        KEEP_TWO,
        clip_range=0.2,
        num_global_tokens=2,
        num_ranks=1,
    )
    result.loss.backward()
    assert result.skipped.item()
    assert result.ratio.item() == pytest.approx(math.exp(3))
    assert result.loss.item() == 0.0
    assert torch.equal(logprobs.grad, torch.zeros(1, 2))


def test_log_ratio_is_cut_at_twenty_nats() -> None:
    result = clipped_policy_loss(
        torch.tensor([[500.0]]),
        torch.zeros(1, 1),
        torch.ones(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        clip_range=0.2,
        num_global_tokens=1,
        num_ranks=1,
    )
    assert result.ratio.item() == pytest.approx(math.exp(20))
    assert result.approx_kl.item() == -500.0
    assert result.loss.item() == 0.0


def test_policy_loss_of_rows_without_any_token_is_zero_and_finite() -> None:
    result = clipped_policy_loss(
        torch.zeros(2, 3),
        torch.zeros(2, 3),
        torch.ones(2, 3),
        torch.zeros(2, 3, dtype=torch.bool),
        clip_range=0.2,
        num_global_tokens=5,
        num_ranks=2,
    )
    assert [result.loss.item(), result.clip_frac.item(), result.approx_kl.item()] == [0, 0, 0]


def test_value_loss_takes_the_larger_error_of_the_clipped_and_the_free_value() -> None:
    # token 1: free (1 - 2)^2 = 1, clipped (0.2 - 2)^2 = 3.24; token 2: free 0.01, clipped 0.01
    loss = value_loss(
        torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), KEEP_TWO, 2
    )
    torch.testing.assert_close(loss, torch.tensor(0.5 * (3.24 + 0.01) / 2))


def test_sft_loss_is_the_mean_negative_log_likelihood_of_the_answer() -> None:
    # answer tokens with probability 1/2 and 1/8: (log 2 + log 8) / 2 = 2 log 2
    loss = sft_loss(
        torch.log(torch.tensor([[0.9, 0.5, 0.125]])),
        torch.tensor([[False, True, True]]),
        num_global_tokens=2,
        num_ranks=1,
    )
    torch.testing.assert_close(loss, torch.tensor(2 * math.log(2)))


def test_prompt_tokens_have_no_gradient_in_the_sft_loss() -> None:
    logprobs = torch.full((1, 3), -1.0, requires_grad=True)
    mask = torch.tensor([[False, True, True]])
    sft_loss(logprobs, mask, num_global_tokens=2, num_ranks=1).backward()
    assert torch.equal(logprobs.grad, torch.tensor([[0.0, -0.5, -0.5]]))


def random_arguments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second, third = 0.3 * torch.randn(3, 4, 5, generator=generator)
    return first, second, third, torch.arange(5) < torch.tensor([[5], [2], [4], [1]])


@pytest.mark.parametrize("loss", TOKEN_LOSSES)
def test_mean_over_ranks_is_the_loss_of_the_whole_batch(loss: TokenLoss) -> None:
    *arrays, mask = random_arguments()
    whole = loss(*arrays, mask, 12)
    # unequal parts: 1 row with 5 tokens, 3 rows with 7
    first = loss(*[a[:1] for a in arrays], mask[:1], 12, 2)
    second = loss(*[a[1:] for a in arrays], mask[1:], 12, 2)
    torch.testing.assert_close((first + second) / 2, whole)


def test_what_the_policy_loss_measures_adds_up_over_unequal_parts() -> None:
    policy, old, advantages, mask = random_arguments()

    def measured(rows: slice, ranks: int) -> Tensor:
        part = clipped_policy_loss(
            policy[rows],
            old[rows],
            advantages[rows],
            mask[rows],
            clip_range=0.2,
            num_global_tokens=12,
            num_ranks=ranks,
        )
        return torch.stack([part.clip_frac, part.approx_kl, part.ratio])

    whole = measured(slice(None), 1)
    assert bool((whole != 0).all())
    torch.testing.assert_close(measured(slice(0, 1), 1) + measured(slice(1, 4), 1), whole)
    torch.testing.assert_close((measured(slice(0, 1), 2) + measured(slice(1, 4), 2)) / 2, whole)


@pytest.mark.parametrize("loss", TOKEN_LOSSES)
def test_nan_in_the_padding_changes_neither_loss_nor_gradient(loss: TokenLoss) -> None:
    *arrays, mask = random_arguments()
    clean = arrays[0].clone().requires_grad_()
    dirty = arrays[0].masked_fill(~mask, NAN).requires_grad_()
    clean_loss = loss(clean, *arrays[1:], mask, 12)
    dirty_loss = loss(dirty, *[a.masked_fill(~mask, NAN) for a in arrays[1:]], mask, 12)
    clean_loss.backward()
    dirty_loss.backward()
    assert torch.equal(clean_loss, dirty_loss)
    assert torch.equal(clean.grad, dirty.grad)


def dpo(margin: float, *, pairs: int = 1, ranks: int = 1) -> tuple[Tensor, Tensor]:
    chosen = torch.tensor([-20.0 + margin], requires_grad=True)
    result = dpo_loss(
        chosen,
        torch.tensor([-30.0]),
        torch.tensor([-20.0]),
        torch.tensor([-30.0]),
        beta=0.1,
        num_global_pairs=pairs,
        num_ranks=ranks,
    )
    result.loss.backward()
    return result.loss.detach(), -chosen.grad


@pytest.mark.parametrize(
    ("margin", "loss", "coefficient"),
    [(0.0, 0.693147, 0.05), (5.0, 0.474077, 0.0377541), (-5.0, 0.974077, 0.0622459)],
)
def test_dpo_loss_and_gradient_coefficient_at_a_margin(
    margin: float, loss: float, coefficient: float
) -> None:
    # loss -log sigmoid(0.1 * margin), coefficient 0.1 * sigmoid(-0.1 * margin)
    value, gradient = dpo(margin)
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert gradient.item() == pytest.approx(coefficient, abs=1e-7)


def test_dpo_gradient_all_but_vanishes_at_a_margin_of_fifty_nats() -> None:
    # sigmoid(-5) = 0.0067
    assert dpo(50.0)[1].item() == pytest.approx(0.1 * 0.0066929, abs=1e-8)


def test_swapping_the_pair_flips_the_sign_of_the_dpo_margin() -> None:
    policy, reference = torch.tensor([[-4.0], [-9.0]]), torch.tensor([[-5.0], [-7.0]])
    kwargs = {"beta": 0.1, "num_global_pairs": 1, "num_ranks": 1}
    there = dpo_loss(policy[0], policy[1], reference[0], reference[1], **kwargs)
    back = dpo_loss(policy[1], policy[0], reference[1], reference[0], **kwargs)
    # margin (1) - (-2) = 3: softplus(-0.3) and softplus(0.3)
    assert there.loss.item() == pytest.approx(math.log1p(math.exp(-0.3)))
    assert back.loss.item() == pytest.approx(math.log1p(math.exp(0.3)))
    torch.testing.assert_close(there.chosen_rewards, torch.tensor([0.1]))
    torch.testing.assert_close(there.rejected_rewards, torch.tensor([-0.2]))


def test_pair_losses_of_unequal_ranks_average_to_the_loss_of_all_pairs() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 3.0])
    whole = pairwise_reward_loss(chosen, rejected, num_global_pairs=3, num_ranks=1)
    parts = [
        pairwise_reward_loss(chosen[s], rejected[s], num_global_pairs=3, num_ranks=2)
        for s in (slice(0, 1), slice(1, 3))
    ]
    # softplus of -1, 2 and 0
    expected = (0.313262 + 2.126928 + 0.693147) / 3
    assert whole.item() == pytest.approx(expected, abs=1e-6)
    assert (sum(parts) / 2).item() == pytest.approx(expected, abs=1e-6)
    assert dpo(0.0, pairs=4, ranks=2)[0].item() == pytest.approx(0.693147 * 2 / 4, abs=1e-6)


def test_reward_loss_does_not_see_a_constant_added_to_the_head() -> None:
    chosen, rejected = torch.tensor([1.5, 0.0]), torch.tensor([0.5, 2.0])
    plain = pairwise_reward_loss(chosen, rejected, num_global_pairs=2, num_ranks=1)
    shifted = pairwise_reward_loss(chosen + 8, rejected + 8, num_global_pairs=2, num_ranks=1)
    torch.testing.assert_close(shifted, plain)


def test_classification_loss_is_cross_entropy_over_all_rows() -> None:
    # probabilities of the labels: 3/4 and 1/2; four rows in the step, this rank has two of them
    logits = torch.log(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
    loss = classification_loss(logits, torch.tensor([1, 0]), num_global_rows=4, num_ranks=2)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 4 * 2)


def test_kl_loss_is_the_weighted_sum_of_k3() -> None:
    # q - p = log 2, 0, -log 2: k3 = 1 - log 2, 0, log 2 - 1/2; derivative in p: 1 - exp(q - p)
    policy = torch.tensor([[-3.0, -2.0, -1.0]], requires_grad=True)
    reference = policy.detach() + torch.log(torch.tensor([[2.0, 1.0, 0.5]]))
    weights = torch.tensor([[0.5, 1.0, 2.0]])
    loss = kl_loss(policy, reference, weights, num_global_terms=4, num_ranks=1)
    loss.backward()
    expected = (0.5 * (1 - math.log(2)) + 2.0 * (math.log(2) - 0.5)) / 4
    torch.testing.assert_close(loss.detach(), torch.tensor(expected))
    torch.testing.assert_close(policy.grad, torch.tensor([[-0.125, 0.0, 0.25]]))


def test_kl_loss_of_unequal_ranks_averages_to_that_of_the_whole() -> None:
    policy, reference, _, mask = random_arguments()
    weights = mask / mask.sum(dim=-1, keepdim=True)
    whole = kl_loss(policy, reference, weights, num_global_terms=4, num_ranks=1)
    parts = [
        kl_loss(policy[rows], reference[rows], weights[rows], num_global_terms=4, num_ranks=2)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert float(whole) > 0
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_nan_where_the_weight_is_0_has_no_part_in_the_kl_loss() -> None:
    policy, reference, _, mask = random_arguments()
    clean = policy.clone().requires_grad_()
    dirty = policy.masked_fill(~mask, NAN).requires_grad_()
    kl_loss(clean, reference, mask.float(), num_global_terms=12, num_ranks=1).backward()
    kl_loss(
        dirty, reference.masked_fill(~mask, NAN), mask.float(), num_global_terms=12, num_ranks=1
    ).backward()
    assert torch.equal(clean.grad, dirty.grad)
