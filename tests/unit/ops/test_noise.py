"""Noise on classes, and cross-entropy with it, against hand values and a second way to say it."""

import math

import pytest
import torch
from torch import Tensor

from rpa_ray.ops.noise import class_noise, noised_nll

IDS = torch.tensor([0, 3, 2, 6, 3])
LOGITS = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss(logits: Tensor, ids: Tensor, eps: float, noise_weight: float) -> Tensor:
    return noised_nll(logits, ids, eps=eps, noise_weight=noise_weight, generator=seeded())


def test_noise_sums_to_its_total_and_leaves_the_target_alone() -> None:
    noise = class_noise(IDS, 7, total=0.1, generator=seeded())
    torch.testing.assert_close(noise.sum(dim=1), torch.full((5,), 0.1))
    assert noise[range(5), IDS].tolist() == [0.0] * 5
    assert int((noise > 0).sum()) == 5 * 6
    # Of the same target, noise differs from token to token.
    assert not torch.equal(noise[1], noise[4])


def test_without_noise_it_is_the_negative_log_likelihood() -> None:
    expected = -LOGITS.log_softmax(dim=-1)[range(5), IDS]
    torch.testing.assert_close(loss(LOGITS, IDS, 0.0, 0.0), expected)


@pytest.mark.parametrize(("noise_weight", "expected"), [(0.01, 1.261528), (0.1, math.log(4))])
def test_uniform_logits_give_the_weights_times_log_v(noise_weight: float, expected: float) -> None:
    found = loss(torch.zeros(1, 4), torch.tensor([2]), 0.1, noise_weight)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_value_and_gradient_equal_the_sum_over_classes() -> None:
    ours, theirs = (LOGITS.double().clone().requires_grad_() for _ in range(2))
    found = loss(ours, IDS, 0.3, 0.09)
    drawn = torch.rand(5, 7, generator=seeded()).double()
    expected = []
    for row, target in zip(range(5), IDS.tolist(), strict=True):
        probabilities = theirs[row].exp() / theirs[row].exp().sum()
        others = [v for v in range(7) if v != target]
        share = sum(drawn[row, v] for v in others)
        noise = sum(drawn[row, v] / share * -probabilities[v].log() for v in others)
        expected.append(0.7 * -probabilities[target].log() + 0.3 * 0.3 * noise)
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=1e-5, rtol=0)
    found.sum().backward()
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=0)
