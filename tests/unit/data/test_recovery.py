from collections import Counter
from itertools import pairwise

from rpa_ray.data.collate import TokenRow
from rpa_ray.data.recovery import recovery_row, with_prefix

PROMPT, REFUSAL = [5, 6], [7, 2]
REFUSED = TokenRow(ids=[*PROMPT, *REFUSAL], loss_mask=[False, False, True, True])
UNSAFE = list(range(1000, 1200))
# Values that chi-square exceeds with probability 0.001, at 1 and 99 degrees of freedom.
RARE_1, RARE_99 = 10.83, 148.23


def drawn(
    *,
    seed: int = 0,
    index: int = 0,
    draw: int = 0,
    unsafe: list[int] = UNSAFE,
    max_tokens: int = 10_000,
) -> TokenRow:
    return recovery_row(REFUSED, unsafe, seed=seed, index=index, draw=draw, max_tokens=max_tokens)


def prefix_length(row: TokenRow) -> int:
    return len(row.ids) - len(REFUSED.ids)


def test_the_prefix_stands_between_prompt_and_refusal_without_loss() -> None:
    row = with_prefix(REFUSED, [8, 9])
    assert row.ids == [5, 6, 8, 9, 7, 2]
    assert row.loss_mask == [False, False, False, False, True, True]


def test_the_loss_is_never_on_unsafe_tokens_and_always_on_the_whole_refusal() -> None:
    for index in range(500):
        row = drawn(index=index)
        counted = [token for token, counts in zip(row.ids, row.loss_mask, strict=True) if counts]
        assert counted == REFUSAL
        assert row.ids[:2] == PROMPT
        assert row.ids[2:-2] == UNSAFE[: prefix_length(row)]


def test_half_of_the_refusals_have_a_prefix_of_any_length_alike() -> None:
    lengths = Counter(prefix_length(drawn(index=i % 1000, draw=i // 1000)) for i in range(10_000))
    num_plain = lengths.pop(0)
    num_prefixed = 10_000 - num_plain
    assert (num_plain - 5000) ** 2 / 5000 + (num_prefixed - 5000) ** 2 / 5000 < RARE_1
    assert set(lengths) == set(range(1, 101))
    expected = num_prefixed / 100
    assert sum((n - expected) ** 2 / expected for n in lengths.values()) < RARE_99


def test_length_and_switch_are_independent_of_the_row_before() -> None:
    firsts = [prefix_length(drawn(index=i)) > 0 for i in range(2000)]
    pairs = Counter(pairwise(firsts))
    assert sum((n - 1999 / 4) ** 2 / (1999 / 4) for n in pairs.values()) < 16.27  # 3 degrees


def test_seed_row_and_draw_decide_and_nothing_else() -> None:
    assert [drawn(index=i) for i in range(50)] == [drawn(index=i) for i in range(50)]
    by_seed, by_draw = (
        [drawn(index=i, **{name: 1}) for i in range(50)] for name in ("seed", "draw")
    )
    plain = [drawn(index=i) for i in range(50)]
    assert by_seed != plain
    assert by_draw != plain
    assert by_seed != by_draw


def test_a_short_answer_and_a_full_context_cut_the_prefix_not_the_refusal() -> None:
    short = {prefix_length(drawn(index=i, unsafe=UNSAFE[:3])) for i in range(400)}
    assert short == {0, 1, 2, 3}
    tight = [drawn(index=i, max_tokens=6) for i in range(1000)]
    assert {prefix_length(row) for row in tight} == {0, 1, 2}
    assert {prefix_length(drawn(index=i, max_tokens=3)) for i in range(50)} == {0}


def test_a_prompt_that_fills_the_context_stays_as_it_is() -> None:
    full = TokenRow(ids=[5, 6], loss_mask=[False, False], truncated=True)
    rows = [recovery_row(full, UNSAFE, seed=0, index=i, draw=0, max_tokens=2) for i in range(20)]
    assert rows == [full] * 20
