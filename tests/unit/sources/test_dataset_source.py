from collections.abc import Sequence

import pytest
import torch
from fakes import ONE_RANK, token_batch

from rpa_ray.learner.ranks import Ranks
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.types import TokenBatch


def collate(rows: Sequence[int]) -> TokenBatch:
    return token_batch([[row] for row in rows])


def source_of(
    num_rows: int, batch_size: int, *, seed: int = 0, ranks: Ranks = ONE_RANK
) -> DatasetSource[int, TokenBatch]:
    return DatasetSource(range(num_rows), collate, batch_size=batch_size, seed=seed, ranks=ranks)


def rows_of(source: DatasetSource[int, TokenBatch], steps: Sequence[int]) -> list[int]:
    return [row for step in steps for row in source.next_batch(step)[0].input_ids[:, 0].tolist()]


def test_a_pass_uses_every_row_exactly_once() -> None:
    assert sorted(rows_of(source_of(12, 4), range(3))) == list(range(12))


def test_passes_that_batches_do_not_divide_leave_out_different_rows() -> None:
    source = source_of(11, 4)
    left_out = set()
    for number in range(8):
        used = set(rows_of(source, [2 * number, 2 * number + 1]))
        assert len(used) == 8
        left_out.add(frozenset(set(range(11)) - used))
    assert len(left_out) > 1


def test_each_pass_has_an_order_of_its_own() -> None:
    source = source_of(12, 4)
    assert rows_of(source, range(3)) != rows_of(source, range(3, 6))
    assert rows_of(source, range(3)) != list(range(12))


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again, other = (rows_of(source_of(12, 4, seed=s), range(6)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_batch_is_found_again_by_its_number() -> None:
    source = source_of(12, 4)
    in_order = [rows_of(source, [step]) for step in range(6)]
    assert rows_of(source, [4]) == in_order[4]
    assert rows_of(source, [1]) == in_order[1]


def test_ranks_divide_the_batch_that_one_rank_would_take() -> None:
    whole = rows_of(source_of(12, 4), range(3))
    parts = [
        [
            rows_of(source_of(12, 4, ranks=Ranks(rank=r, size=2, device=ONE_RANK.device)), [step])
            for r in range(2)
        ]
        for step in range(3)
    ]
    assert [row for step in parts for part in step for row in part] == whole
    assert all(len(part) == 2 for step in parts for part in step)


def test_batches_drawn_in_line_go_on_after_a_resume() -> None:
    source = source_of(12, 4)
    drawn = [source().input_ids for _ in range(5)]
    resumed = source_of(12, 4)
    for _ in range(2):
        resumed()
    again = source_of(12, 4)
    again.load_state_dict(resumed.state_dict())
    for expected in drawn[2:]:
        assert torch.equal(again().input_ids, expected)


def test_drawing_in_line_does_not_disturb_batches_by_number() -> None:
    source = source_of(12, 4)
    expected = rows_of(source, [0, 1])
    source()
    assert rows_of(source, [0, 1]) == expected


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^batch_size must be at most the number of rows \(3\), got 4\."
    ):
        source_of(3, 4)


def test_a_row_may_change_from_pass_to_pass_alike_on_any_ranks() -> None:
    def source(ranks: Ranks) -> DatasetSource[int, TokenBatch]:
        return DatasetSource(
            range(12),
            collate,
            batch_size=4,
            seed=0,
            ranks=ranks,
            vary=lambda row, index, number: 1000 * number + 10 * row + (row == index),
        )

    whole = rows_of(source(ONE_RANK), range(6))
    assert sorted(whole[:12]) == [10 * row + 1 for row in range(12)]
    assert sorted(whole[12:]) == [1000 + 10 * row + 1 for row in range(12)]
    parts = [Ranks(rank=r, size=2, device=torch.device("cpu")) for r in range(2)]
    drawn = [[rows_of(source(ranks), [step]) for step in range(6)] for ranks in parts]
    assert [row for step in range(6) for part in drawn for row in part[step]] == whole
