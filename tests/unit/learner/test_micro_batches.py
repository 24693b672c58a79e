import pytest
import torch
from fakes import experience_of, token_batch

from rpa_ray.learner.micro_batches import (
    longest_first,
    row_lengths,
    sizes_within,
    trimmed_parts,
)
from rpa_ray.types import PairBatch, joined, rows_of, widened

ROWS = [[1, 5, 2], [1, 5, 6, 7, 8, 2], [1, 2], [1, 5, 6, 2]]
OTHERS = [[1, 2], [1, 2], [1, 5, 6, 7, 2], [1, 2]]


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "max_rows", "sizes"),
    [
        ([6, 5, 2, 2, 2], 12, 64, [2, 3]),
        ([6, 5, 2, 2, 2], 12, 2, [2, 2, 1]),
        ([6, 5, 2, 2, 2], 1000, 64, [5]),
        # Longer than a part may be: alone.
        ([6, 5, 2, 2, 2], 5, 64, [1, 1, 2, 1]),
        # In another order the width of a part grows with it.
        ([2, 2, 2, 6, 5], 12, 64, [3, 2]),
        ([2, 6, 2], 12, 64, [2, 1]),
        ([0, 0], 1, 64, [2]),
        ([], 12, 64, []),
    ],
)
def test_a_part_has_as_many_rows_as_its_tokens_allow(
    lengths: list[int], max_tokens: int, max_rows: int, sizes: list[int]
) -> None:
    assert sizes_within(lengths, max_tokens=max_tokens, max_rows=max_rows) == sizes


def test_rows_are_as_long_as_what_is_read_of_them() -> None:
    assert row_lengths(token_batch(ROWS)).tolist() == [3, 6, 2, 4]
    assert row_lengths(experience_of(token_batch(ROWS))).tolist() == [3, 6, 2, 4]
    pairs = PairBatch(chosen=token_batch(ROWS), rejected=token_batch(OTHERS))
    assert row_lengths(pairs).tolist() == [3, 6, 5, 4]


def test_equal_rows_keep_their_order() -> None:
    assert longest_first(torch.tensor([2, 3, 2, 3])).tolist() == [1, 3, 0, 2]


def test_parts_are_as_wide_as_their_longest_row_and_together_the_batch() -> None:
    batch = experience_of(token_batch(ROWS))
    order = longest_first(row_lengths(batch))
    parts = trimmed_parts(rows_of(batch, order), [1, 3])
    assert [part.tokens.input_ids.shape for part in parts] == [(1, 6), (3, 4)]
    assert [part.advantages.shape for part in parts] == [(1, 6), (3, 4)]
    whole = rows_of(joined([widened(part, 6) for part in parts]), order.argsort())
    mask = batch.tokens.attention_mask
    for name in ("old_logprobs", "advantages"):
        found, expected = getattr(whole, name), getattr(batch, name)
        assert torch.equal(found * mask, expected * mask)
    assert torch.equal(whole.tokens.input_ids, batch.tokens.input_ids)
    assert torch.equal(whole.tokens.attention_mask, mask)


def test_both_answers_of_a_pair_are_as_wide_as_the_longer() -> None:
    pairs = PairBatch(chosen=token_batch(ROWS, width=9), rejected=token_batch(OTHERS, width=9))
    part, _ = trimmed_parts(pairs, [3, 1])
    assert part.chosen.input_ids.shape == part.rejected.input_ids.shape == (3, 6)
