from pathlib import Path

import pyarrow as pa

from rpa_ray.data.order import hash_order
from rpa_ray.data.pair_table import PairTable, write_pairs
from rpa_ray.data.pairs import answered
from rpa_ray.data.rows import SafePair

ODD = "an accent of its own e\u0301, a null \x00, \U0001f512 and\r\nlines"


def pair(number: int, category: str | None = None) -> SafePair:
    texts = {"prompt": f"ask {number} {ODD}", "safe": "", "unsafe": f"yes {number}"}
    return answered("preferences", **texts, category=category)


def test_a_table_of_pairs_is_the_pairs_that_were_written(tmp_path: Path) -> None:
    pairs = tuple(pair(i, None if i % 3 else f"kind {i}") for i in range(2500))
    write_pairs(tmp_path / "pairs.arrow", pairs)
    table = PairTable(tmp_path / "pairs.arrow")
    assert tuple(table) == pairs
    assert len(table) == len(pairs)
    assert [table[i] for i in (0, 1023, 1024, 2499, -1, -2500)] == [
        pairs[i] for i in (0, 1023, 1024, 2499, -1, -2500)
    ]
    for some in (slice(3), slice(1020, 1030), slice(None, None, -700), slice(9000, 9001)):
        assert table[some] == pairs[some]
    for beyond in (2500, -2501):
        try:
            table[beyond]
        except IndexError:
            continue
        raise AssertionError(beyond)


def test_a_table_of_no_pairs_is_empty(tmp_path: Path) -> None:
    write_pairs(tmp_path / "none.arrow", ())
    table = PairTable(tmp_path / "none.arrow")
    assert (len(table), list(table), table[:5], bool(table)) == (0, [], (), False)


def test_the_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.arrow"
    write_pairs(path, [pair(i) for i in range(50_000)])
    before = pa.total_allocated_bytes()
    table = PairTable(path)
    assert len(table) == 50_000
    assert path.stat().st_size > 5_000_000
    assert pa.total_allocated_bytes() - before < 100_000
    path.unlink()
    assert table[49_999] == pair(49_999)


def test_the_first_rows_of_an_order_are_those_of_the_whole_order() -> None:
    pairs = [pair(i) for i in range(200)]
    whole = hash_order(pairs, purpose="p", seed=3)
    assert sorted(whole, key=lambda p: p.id) == sorted(pairs, key=lambda p: p.id)
    assert whole != pairs
    for num in (0, 1, 17, 200):
        assert hash_order(pairs, purpose="p", seed=3, num=num) == whole[:num]
