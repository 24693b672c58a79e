"""The robust loss of a group by hand, by a second way to say it, and at its limit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rpa_ray.ops.robust import robust_group_losses

MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]] * 2).bool()
MASK[5] = False


def losses(
    log_ratios: Tensor, advantages: list[float], mask: Tensor, *, group_size: int, **settings: Any
) -> Tensor:
    defaults: dict[str, Any] = {"lam": 1.0, "clip_range": 0.2}
    return robust_group_losses(
        log_ratios - 2.0,
        torch.full_like(log_ratios, -2.0),
        torch.tensor(advantages),
        mask,
        group_size=group_size,
        **defaults | settings,
    )


def test_a_group_of_two_by_hand() -> None:
    # at ratio 1, lam 0.5 and rewards 1 and 0: x = exp(-1) and exp(1)
    ones = torch.zeros(2, 3)
    mask = torch.ones(2, 3).bool()
    log_mean = math.log((math.e + 1 / math.e) / 2)
    for settings, expected in [
        # 2 log mean - (log x_1 + log x_2) / 2, the last of which is 0
        ({}, 2 * log_mean - 1),
        ({"baseline": False}, 2 * log_mean),
        ({"jackknife": False}, log_mean - 1),
        ({"jackknife": False, "baseline": False}, log_mean),
    ]:
        found = losses(ones, [0.5, -0.5], mask, group_size=2, lam=0.5, **settings)
        assert float(found) == pytest.approx(expected, abs=1e-6)
    # x = 1 and 3: 2 log 2 - log(3) / 2
    tripled = losses(ones, [0.0, -math.log(3)], mask, group_size=2, baseline=False)
    assert float(tripled) == pytest.approx(2 * math.log(2) - math.log(3) / 2, abs=1e-6)


def test_above_1_lam_multiplies_the_loss() -> None:
    ones, mask = torch.zeros(2, 3), torch.ones(2, 3).bool()
    plain = losses(ones, [0.5, -0.5], mask, group_size=2, lam=1.0)
    larger = losses(ones, [2.0, -2.0], mask, group_size=2, lam=4.0)
    torch.testing.assert_close(larger, 4 * plain)


@pytest.mark.parametrize("lam", [0.2, 3.0])
@pytest.mark.parametrize("jackknife", [True, False])
@pytest.mark.parametrize("baseline", [True, False])
def test_value_and_gradient_equal_the_formula(lam: float, jackknife: bool, baseline: bool) -> None:
    drawn = 0.2 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = (drawn.clone().requires_grad_() for _ in range(2))
    advantages = [0.4, -0.3, 0.2, -0.3, 0.5, 9.0, -0.9, 0.4]
    found = losses(
        ours, advantages, MASK, group_size=4, lam=lam, jackknife=jackknife, baseline=baseline
    )
    expected = []
    for group in ([0, 1, 2, 3], [4, 6, 7]):  # answer 5 was not scored
        ratios = [
            sum(min(theirs[i, t].exp(), torch.tensor(1.2)) for t in range(4) if MASK[i, t])
            / int(MASK[i].sum())
            for i in group
        ]
        x = [r * math.exp(-advantages[i] / lam) for i, r in zip(group, ratios, strict=True)]
        n = len(x)
        value = (sum(x) / n).log()
        if jackknife:
            without = [((sum(x) - one) / (n - 1)).log() for one in x]
            value = n * value - (n - 1) * sum(without) / n
        if baseline:
            value = value - sum(ratios) / n
        expected.append(max(lam, 1.0) * value)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("jackknife", [True, False])
def test_equal_rewards_teach_nothing_with_the_baseline(jackknife: bool) -> None:
    log_ratios = torch.zeros(8, 4, requires_grad=True)
    mask = torch.ones(8, 4).bool()
    losses(log_ratios, [0.0] * 8, mask, group_size=4, jackknife=jackknife).sum().backward()
    assert log_ratios.grad is not None
    assert float(log_ratios.grad.abs().max()) < 1e-7


def test_a_group_with_fewer_than_two_scored_answers_has_no_loss_and_no_gradient() -> None:
    mask = torch.ones(4, 3).bool()
    mask[1:] = False
    log_ratios = torch.zeros(4, 3, requires_grad=True)
    both = losses(log_ratios, [0.0] * 4, mask, group_size=2)
    both.sum().backward()
    assert both.tolist() == [0.0, 0.0]
    assert log_ratios.grad is not None
    assert not log_ratios.grad.any()


def test_a_harsh_lam_stays_finite() -> None:
    log_ratios = torch.zeros(4, 3, requires_grad=True)
    mask = torch.ones(4, 3).bool()
    found = losses(log_ratios, [4.0, -4.0, 8.0, -8.0], mask, group_size=4, lam=0.02)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert log_ratios.grad is not None
    assert torch.isfinite(log_ratios.grad).all()
