import torch

from rpa_ray.ops.masking import masked_mean, masked_sum, sequence_sums, weights_by_position

VALUES = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 8.0, 16.0]])
MASK = torch.tensor([[True, True, False], [False, True, True]])


def test_masked_sums_and_means_ignore_even_nan_at_dropped_positions() -> None:
    # rows 1 + 2 and 8 + 16
    torch.testing.assert_close(sequence_sums(VALUES, MASK), torch.tensor([3.0, 24.0]))
    torch.testing.assert_close(masked_sum(VALUES, MASK), torch.tensor(27.0))
    torch.testing.assert_close(masked_mean(VALUES, MASK), torch.tensor(6.75))


def test_the_mean_of_no_position_is_zero() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert masked_mean(VALUES, nothing).item() == 0.0


def test_a_token_weighs_by_its_place_in_the_answer() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [0] * 10])
    found = weights_by_position(mask.bool(), first=5.0, second_to_fifth=20.0, later=1.0)
    assert found.tolist() == [
        [0, 0, 5, 20, 20, 20, 20, 1, 1, 0],
        [5, 20, 0, 0, 0, 0, 0, 0, 0, 0],
        [0] * 10,
    ]
