import pytest
import torch

from rpa_ray.ops.gradients import angle_of, inner_products, rows_of


def test_norms_and_cosine_of_two_gradients() -> None:
    # |(3, 4)| = 5, |(8, 6)| = 10, (3, 4).(8, 6) = 48
    angle = angle_of(inner_products(torch.tensor([3.0, 4.0]), torch.tensor([8.0, 6.0])))
    assert (angle.first_norm, angle.second_norm) == pytest.approx((5.0, 10.0))
    assert angle.cosine == pytest.approx(0.96)


def test_parts_add_up_to_the_whole_whatever_their_shape() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    parts = inner_products(one[:1], other[:1]) + inner_products(one[1:], other[1:])
    torch.testing.assert_close(parts, inner_products(one.flatten(), other.flatten()))


def test_a_gradient_and_its_reverse_are_opposed() -> None:
    gradient = torch.tensor([0.5, -2.0])
    assert angle_of(inner_products(gradient, -3 * gradient)).cosine == pytest.approx(-1.0)


def test_without_a_gradient_the_cosine_is_0() -> None:
    angle = angle_of(inner_products(torch.zeros(2), torch.ones(2)))
    assert (angle.first_norm, angle.cosine) == (0.0, 0.0)


def test_parts_come_as_rows_and_none_as_no_row() -> None:
    parts = [inner_products(torch.tensor([x]), torch.tensor([1.0])) for x in (2.0, 3.0)]
    assert rows_of(parts).tolist() == [[4.0, 1.0, 2.0], [9.0, 1.0, 3.0]]
    assert rows_of([]).sum(dim=0).tolist() == [0.0, 0.0, 0.0]
