import pytest
import torch
from torch import Tensor

from rpa_ray.ops.representation import (
    differing_positions,
    gaussian_mmd,
    kept_vectors,
    mean_level,
    prompt_ends,
)


def vectors(num: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=dtype)


def naive_mmd(one: Tensor, other: Tensor) -> Tensor:
    """Return the same from all differences, kernel by kernel."""
    both = torch.cat([one, other])
    distances = (both[:, None] - both[None]).square().sum(dim=-1)
    num = len(both)
    width = distances.detach().sum() / (num * (num - 1))
    kernels = sum((-distances / (width * 2.0**i)).exp() for i in (-2, -1, 0, 1, 2))
    half = num // 2
    cross = kernels[:half, half:].mean() + kernels[half:, :half].mean()  # type: ignore[index]
    return kernels[:half, :half].mean() + kernels[half:, half:].mean() - cross  # type: ignore[index]


def test_the_mmd_of_two_pairs_of_points() -> None:
    one = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[0.0, 2.0], [1.0, 2.0]])
    # distances 1 within, 4 and 5 between; width 40 / 12, times 1/4 to 4
    assert float(gaussian_mmd(one, other)) == pytest.approx(5.254452, abs=1e-5)


def test_value_and_gradient_are_those_of_all_differences() -> None:
    one = vectors(6, 40, seed=0, dtype=torch.float64).float().requires_grad_()
    twin = one.detach().clone().requires_grad_()
    other = vectors(6, 40, seed=1) + 0.3
    found, expected = gaussian_mmd(one, other), naive_mmd(twin, other)
    found.backward()
    expected.backward()
    assert float(found) == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(one.grad, twin.grad, rtol=1e-4, atol=1e-6)


def test_points_far_from_the_origin_are_told_apart_as_near_it() -> None:
    one, other = vectors(4, 16, seed=0), vectors(4, 16, seed=1)
    near, far = gaussian_mmd(one, other), gaussian_mmd(one + 1000.0, other + 1000.0)
    assert float(far) == pytest.approx(float(near), abs=1e-3)


def test_a_sample_has_no_distance_from_itself_in_any_order() -> None:
    one = vectors(5, 8, seed=0)
    assert float(gaussian_mmd(one, one)) == pytest.approx(0.0, abs=1e-5)
    assert float(gaussian_mmd(one, one.flip(0))) == pytest.approx(0.0, abs=1e-5)


def test_both_samples_play_the_same_part_and_rows_have_no_order() -> None:
    one, other = vectors(5, 8, seed=0), vectors(5, 8, seed=1)
    value = float(gaussian_mmd(one, other))
    assert float(gaussian_mmd(other, one)) == pytest.approx(value, abs=1e-5)
    assert float(gaussian_mmd(one.roll(2, 0), other.flip(0))) == pytest.approx(value, abs=1e-5)


def test_a_shift_of_three_deviations_is_far_above_the_floor() -> None:
    one, other = vectors(8, 64, seed=0), vectors(8, 64, seed=1)
    assert float(gaussian_mmd(one + 3.0, other)) > 3 * float(gaussian_mmd(one, other))


@pytest.mark.parametrize(("num", "floor"), [(2, 3.1), (4, 1.5), (8, 0.77)])
def test_two_samples_of_one_distribution_are_about_six_over_their_size_apart(
    num: int, floor: float
) -> None:
    found = gaussian_mmd(vectors(num, 4096, seed=0), vectors(num, 4096, seed=1))
    assert float(found) == pytest.approx(floor, rel=0.05)


def test_vectors_that_are_all_the_same_have_a_finite_gradient() -> None:
    one = torch.ones(2, 3, requires_grad=True)
    value = gaussian_mmd(one, torch.ones(2, 3))
    value.backward()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-6)
    assert one.grad is not None
    assert bool(torch.isfinite(one.grad).all())


def test_the_level_of_four_cross_entropies() -> None:
    # 1 + (2 + 10 + 4 + 2) / 3
    level = mean_level(torch.tensor(2.0), torch.tensor([10.0, 4.0, 2.0]))
    assert float(level) == pytest.approx(7.0)
    assert float(-level.log()) == pytest.approx(-1.945910, abs=1e-6)


def test_the_gradient_of_the_log_level_is_bounded_by_the_level() -> None:
    by_layer = torch.tensor([10.0, 4.0, 2.0], requires_grad=True)
    (-mean_level(torch.tensor(2.0), by_layer).log()).backward()
    assert by_layer.grad is not None
    assert by_layer.grad.tolist() == pytest.approx([-1 / 3 / 7] * 3)


def test_kept_vectors_are_0_where_the_mask_is_false_whatever_stands_there() -> None:
    states = torch.tensor([[[1.0, 2.0], [float("nan"), 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    mask = torch.tensor([[True, False], [False, True]])
    assert kept_vectors(states, mask).tolist() == [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 7.0, 8.0]]


def test_positions_differ_where_ids_do_and_never_at_the_first() -> None:
    one, other = torch.tensor([[1, 5, 6, 0]]), torch.tensor([[3, 5, 7, 2]])
    assert differing_positions(one, other).tolist() == [[False, False, True, True]]


def test_a_prompt_ends_before_its_answer_or_with_its_row() -> None:
    attention = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    marked = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert prompt_ends(marked, attention).tolist() == [1, 0, 2, 0]
