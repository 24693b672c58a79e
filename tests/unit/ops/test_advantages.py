import pytest
import torch
from torch import Tensor

from rpa_ray.ops.advantages import (
    gae,
    group_advantages,
    token_rewards,
    whiten,
    whiten_with,
    whitening_sums,
)

NAN = float("nan")


def kept(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_gae_matches_the_hand_computed_episode() -> None:
    # errors 0.08, 0.11, 0.7; A3 = 0.7, A2 = 0.11 + 0.95 * 0.7, A1 = 0.08 + 0.95 * A2
    estimate = gae(
        torch.tensor([[-0.02, 0.01, 1.0]]),
        torch.tensor([[0.1, 0.2, 0.3]]),
        kept([1, 1, 1]),
        gamma=1.0,
        gae_lambda=0.95,
    )
    torch.testing.assert_close(estimate.advantages, torch.tensor([[0.81625, 0.775, 0.7]]))
    torch.testing.assert_close(estimate.returns, torch.tensor([[0.91625, 0.975, 1.0]]))


def test_gae_discounts_the_next_value() -> None:
    # error 1: 0 + 0.5 * 2 - 1 = 0; error 2: 4 - 2 = 2; A1 = 0 + 0.5 * 0.5 * 2
    estimate = gae(
        torch.tensor([[0.0, 4.0]]),
        torch.tensor([[1.0, 2.0]]),
        kept([1, 1]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    torch.testing.assert_close(estimate.advantages, torch.tensor([[0.5, 2.0]]))


def test_gae_does_not_see_the_prompt_before_or_the_padding_after_an_answer() -> None:
    estimate = gae(
        torch.tensor([[NAN, -0.02, 0.01, 1.0, NAN]]),
        torch.tensor([[9.0, 0.1, 0.2, 0.3, NAN]]),
        kept([0, 1, 1, 1, 0]),
        gamma=1.0,
        gae_lambda=0.95,
    )
    expected = torch.tensor([[0.0, 0.81625, 0.775, 0.7, 0.0]])
    torch.testing.assert_close(estimate.advantages, expected)
    torch.testing.assert_close(estimate.returns[0, [0, 4]], torch.zeros(2))


def test_gae_is_linear_in_rewards_and_values() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 2, 3, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])

    def advantages(r: Tensor, v: Tensor) -> Tensor:
        return gae(r, v, mask, gamma=0.9, gae_lambda=0.8).advantages

    mixed = advantages(2 * rewards[0] - rewards[1], 2 * values[0] - values[1])
    apart = 2 * advantages(rewards[0], values[0]) - advantages(rewards[1], values[1])
    torch.testing.assert_close(mixed, apart, atol=1e-14, rtol=0)


def test_gae_with_lambda_one_is_return_minus_value() -> None:
    estimate = gae(
        torch.tensor([[1.0, 2.0, 4.0]]),
        torch.tensor([[0.5, 0.25, 8.0]]),
        kept([1, 1, 1]),
        gamma=1.0,
        gae_lambda=1.0,
    )
    torch.testing.assert_close(estimate.returns, torch.tensor([[7.0, 6.0, 4.0]]))


def test_whitening_matches_the_bessel_corrected_vector() -> None:
    whitened = whiten(torch.tensor([[0.81625, 0.775, 0.7]]), kept([1, 1, 1]))
    torch.testing.assert_close(
        whitened, torch.tensor([[0.890797, 0.190885, -1.081683]]), atol=1e-6, rtol=0
    )


def test_whitening_ignores_padding_and_puts_zero_there() -> None:
    whitened = whiten(torch.tensor([[0.81625, NAN, 0.775, 0.7, 1e9]]), kept([1, 0, 1, 1, 0]))
    expected = torch.tensor([[0.890797, 0.0, 0.190885, -1.081683, 0.0]])
    torch.testing.assert_close(whitened, expected, atol=1e-6, rtol=0)


def test_whitening_with_added_sums_of_two_ranks_is_whitening_of_the_whole() -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([[5], [2], [0], [4]])
    sums = whitening_sums(x[:1], mask[:1]) + whitening_sums(x[1:], mask[1:])
    parts = [whiten_with(x[:1], mask[:1], sums), whiten_with(x[1:], mask[1:], sums)]
    torch.testing.assert_close(torch.cat(parts), whiten(x, mask))


def test_whitening_removes_scale_and_shift_of_the_advantages() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(whiten(100.0 * x - 30.0, mask), whiten(x, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("row", [[1, 0], [0, 0]])
def test_whitening_of_one_or_no_token_is_zero(row: list[int]) -> None:
    assert torch.equal(whiten(torch.tensor([[5.3, 7.0]]), kept(row)), torch.zeros(1, 2))


def test_whitening_of_a_constant_is_zero_even_when_it_is_large() -> None:
    mask = torch.ones(8, 16, dtype=torch.bool)
    assert whiten(torch.full((8, 16), 1234.567), mask).abs().max().item() < 1e-6


def test_group_advantages_match_the_hand_computed_groups() -> None:
    # std with n - 1: sqrt(1/3) = 0.577350 and sqrt(30.75/3) = 3.201562
    groups = group_advantages(torch.tensor([1.0, 1, 0, 0, 7, 1, 1, 0]), 4)
    first = [0.865875, 0.865875, -0.865875, -0.865875]
    second = [1.483604, -0.390422, -0.390422, -0.702760]
    torch.testing.assert_close(groups.advantages, torch.tensor(first + second), atol=1e-6, rtol=0)
    torch.testing.assert_close(groups.stds, torch.tensor([0.577350, 3.201562]), atol=1e-6, rtol=0)


def test_group_advantages_do_not_change_under_a_positive_affine_map_of_the_rewards() -> None:
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(0))
    plain, moved = group_advantages(rewards, 4), group_advantages(50.0 * rewards + 7.0, 4)
    torch.testing.assert_close(moved.advantages, plain.advantages, atol=1e-3, rtol=0)
    turned = group_advantages(-rewards, 4)
    torch.testing.assert_close(turned.advantages, -plain.advantages)
    torch.testing.assert_close(turned.stds, plain.stds)


def test_group_of_equal_rewards_has_zero_advantage() -> None:
    # in fp32 the rounded mean of 16 times 12.7 would give 0.009
    groups = group_advantages(torch.full((16,), 12.7), 16)
    assert groups.advantages.abs().max().item() < 1e-9
    assert groups.stds.max().item() < 1e-9


def test_group_advantages_are_whitening_within_the_group_but_for_epsilon() -> None:
    rewards = torch.tensor([7.0, 1.0, 1.0, 0.0])
    whitened = whiten(rewards[None], kept([1, 1, 1, 1]))[0]
    std = 3.201562
    advantages = group_advantages(rewards, 4).advantages
    torch.testing.assert_close(advantages, whitened * std / (std + 1e-4))


def test_completions_that_do_not_count_touch_no_mean_and_no_deviation() -> None:
    # kept 1 and 3: mean 2, std sqrt(2); the second group keeps one and has no deviation
    groups = group_advantages(
        torch.tensor([1.0, 1e6, 3.0, 5.0, -1e6, 1e6]),
        3,
        kept=torch.tensor([True, False, True, True, False, False]),
    )
    expected = torch.tensor([-0.707057, 0.0, 0.707057, 0.0, 0.0, 0.0])
    torch.testing.assert_close(groups.advantages, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(groups.stds, torch.tensor([2.0**0.5, 0.0]))


def test_without_scaling_an_advantage_is_the_distance_to_the_mean() -> None:
    groups = group_advantages(torch.tensor([7.0, 1, 1, 0]), 4, scale=False)
    torch.testing.assert_close(groups.advantages, torch.tensor([4.75, -1.25, -1.25, -2.25]))
    torch.testing.assert_close(groups.stds, torch.tensor([3.201562]))


@pytest.mark.parametrize("group_size", [1, 4])
def test_group_size_must_divide_the_rewards(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size must .* got {group_size}"):
        group_advantages(torch.zeros(6), group_size)


def test_score_lands_on_the_last_answer_token_and_the_penalty_on_every_one() -> None:
    # k1 = (0.5, -1, 2) on the answer, coefficient 0.2
    rewards = token_rewards(
        torch.tensor([3.0]),
        torch.tensor([[NAN, -1.0, -2.0, -1.0, NAN]]),
        torch.tensor([[0.0, -1.5, -1.0, -3.0, 0.0]]),
        kept([0, 1, 1, 1, 0]),
        kl_coef=0.2,
    )
    torch.testing.assert_close(rewards, torch.tensor([[0.0, -0.1, 0.2, 2.6, 0.0]]))


def test_score_of_an_empty_answer_is_left_out() -> None:
    zeros = torch.zeros(2, 3)
    rewards = token_rewards(
        torch.tensor([5.0, 7.0]), zeros, zeros, kept([0, 0, 0], [0, 1, 0]), kl_coef=0.2
    )
    assert torch.equal(rewards, torch.tensor([[0.0, 0.0, 0.0], [0.0, 7.0, 0.0]]))


def test_kl_penalty_of_a_reward_is_not_cut() -> None:
    rewards = token_rewards(
        torch.tensor([0.0]), torch.zeros(1, 1), torch.tensor([[-50.0]]), kept([1]), kl_coef=0.1
    )
    torch.testing.assert_close(rewards, torch.tensor([[-5.0]]))
