import logging

import pytest
import torch
from torch import Tensor

from rpa_ray.scoring.batching import cut_to, in_batches, right_padded


def test_rows_are_padded_on_the_right() -> None:
    ids, mask = right_padded([[5], [6, 7, 8]], pad_token_id=9)
    assert ids.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_results_come_back_in_row_order_from_batches_of_similar_length() -> None:
    widths: list[int] = []

    def compute(ids: Tensor, mask: Tensor, rows: list[int]) -> list[tuple[int, int]]:
        widths.append(ids.shape[1])
        return list(zip(rows, torch.sum(ids * mask, dim=1).tolist(), strict=True))

    rows = [[1, 1, 1, 1], [2], [3, 3, 3], [4]]
    results = in_batches(rows, batch_size=2, pad_token_id=0, compute=compute)
    assert results == [(0, 4), (1, 2), (2, 9), (3, 4)]
    assert widths == [1, 4]


def test_cut_rows_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert cut_to([[1, 2, 3], [4]], 2) == [[1, 2], [4]]
    assert "1 of 2 texts were cut to 2 tokens" in caplog.text
