import math

import pytest
import torch

from rpa_ray.ops.kl import AdaptiveKL, FixedKL, kl_full, kl_k1, kl_k3, kl_of_frozen
from rpa_ray.ops.logprobs import token_logprobs

# p = (0.9, 0.1), q = (0.5, 0.5): KL = 0.9 log 1.8 + 0.1 log 0.2
POLICY = torch.tensor([[[0.9, 0.1]]]).log()
REFERENCE = torch.tensor([[[0.5, 0.5]]]).log()
KL = 0.368064


def test_full_kl_matches_the_closed_form() -> None:
    assert kl_full(POLICY, REFERENCE).item() == pytest.approx(KL, abs=1e-6)


def test_full_kl_of_identical_logits_is_exactly_zero() -> None:
    logits = torch.randn(3, 5, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl_full(logits, logits.clone()), torch.zeros(3, 5))


def test_full_kl_is_never_negative_for_almost_equal_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 50, 200, generator=generator)
    nearby = logits + 1e-5 * torch.randn(8, 50, 200, generator=generator)
    assert kl_full(logits, nearby).min().item() >= 0.0


def test_full_kl_ignores_a_shift_of_all_logits() -> None:
    torch.testing.assert_close(kl_full(POLICY + 3.0, REFERENCE - 7.0), kl_full(POLICY, REFERENCE))


def test_kl_of_a_frozen_model_is_the_other_direction() -> None:
    # 0.5 log(0.5 / 0.9) + 0.5 log(0.5 / 0.1)
    assert kl_of_frozen(POLICY, REFERENCE).item() == pytest.approx(0.510826, abs=1e-6)
    torch.testing.assert_close(kl_of_frozen(POLICY, REFERENCE), kl_full(REFERENCE, POLICY))


def test_kl_of_a_frozen_model_has_the_gradient_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, frozen = torch.randn(2, 4, 30, generator=generator).unbind()
    gradients = []
    for divergence in (
        kl_of_frozen,
        lambda p, q: (q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))).sum(-1),
    ):
        logits = policy.clone().requires_grad_()
        (divergence(logits, frozen) * torch.arange(4.0)).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_of_a_frozen_model_has_no_gradient_at_all_where_the_models_agree(
    dtype: torch.dtype,
) -> None:
    frozen = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits = frozen.clone().requires_grad_()
    kl_of_frozen(logits, frozen).sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(frozen))


def test_expected_k3_under_the_policy_is_the_kl() -> None:
    k3 = kl_k3(POLICY[0], REFERENCE[0])
    assert (k3 * torch.tensor([[0.9, 0.1]])).sum().item() == pytest.approx(KL, abs=1e-6)


def test_k3_is_not_negative_and_k1_is_the_plain_log_ratio_however_large() -> None:
    policy, reference = torch.tensor([[-1.0, -90.0, -1.0]]), torch.tensor([[-3.0, -1.0, -90.0]])
    assert torch.equal(kl_k1(policy, reference), torch.tensor([[2.0, -89.0, 89.0]]))
    # exp(-2) + 2 - 1; the second is cut at exp(20) - 21; the third is 89 - 1
    expected = torch.tensor([[math.exp(-2) + 1, math.exp(20) - 21, 88.0]])
    torch.testing.assert_close(kl_k3(policy, reference), expected)


def test_k1_on_sampled_tokens_agrees_with_the_full_kl() -> None:
    num_tokens = 100_000
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(POLICY[0, 0].exp(), num_tokens, True, generator=generator)[None]
    k1 = kl_k1(
        token_logprobs(POLICY.expand(1, num_tokens, 2), tokens),
        token_logprobs(REFERENCE.expand(1, num_tokens, 2), tokens),
    )
    four_standard_errors = 4 * k1.std().item() / math.sqrt(num_tokens)
    assert four_standard_errors < 0.01
    assert k1.mean().item() == pytest.approx(KL, abs=four_standard_errors)


@pytest.mark.parametrize(("kl", "expected"), [(30.0, 0.200032), (6.0, 0.2), (3.0, 0.199968)])
def test_adaptive_controller_moves_by_at_most_a_fifth_of_the_batch_share(
    kl: float, expected: float
) -> None:
    # 0.2 * (1 + clip(kl / 6 - 1, -0.2, 0.2) * 8 / 10000)
    controller = AdaptiveKL(0.2, target=6.0, horizon=10_000)
    controller.update(kl, 8)
    assert controller.value == pytest.approx(expected, abs=1e-9)


def test_restored_controller_continues_as_the_uninterrupted_one() -> None:
    whole = AdaptiveKL(0.2, target=6.0, horizon=100)
    whole.update(9.0, 8)
    resumed = AdaptiveKL(0.2, target=6.0, horizon=100)
    resumed.load_state_dict(whole.state_dict())
    for controller in (whole, resumed):
        controller.update(2.0, 8)
    assert resumed.value == whole.value != 0.2


def test_adaptive_controller_refuses_a_divergence_that_is_not_finite() -> None:
    controller = AdaptiveKL(0.2, target=6.0, horizon=10_000)
    with pytest.raises(ValueError, match="kl must be finite, got nan"):
        controller.update(float("nan"), 8)
    assert controller.value == 0.2


def test_fixed_controller_never_moves() -> None:
    controller = FixedKL(0.05)
    controller.update(1000.0, 8)
    assert controller.value == 0.05
    assert controller.state_dict() == {"value": 0.05}
