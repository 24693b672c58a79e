import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.judge_rows import HARMFUL, SAFE, judge_rows
from rpa_ray.data.rows import SafePair


def make_pairs(num: int) -> list[SafePair]:
    return [
        SafePair(
            id=f"p{i}",
            prompt=f"ask {i}",
            safe=f"I will not explain {i}",
            unsafe=f"First melt {i} then stir it",
            category=None,
        )
        for i in range(num)
    ]


def test_one_in_twenty_answers_is_empty_and_one_in_twenty_word_salad() -> None:
    rows = judge_rows(make_pairs(200), num_rows=400, seed=0)
    originals = {pair.safe for pair in make_pairs(200)} | {p.unsafe for p in make_pairs(200)}
    empty = [row for row in rows if row.answer == ""]
    salad = [row for row in rows if row.answer and row.answer not in originals]
    assert (len(rows), len(empty), len(salad)) == (400, 20, 20)
    assert {row.label for row in empty + salad} == {SAFE}


def test_word_salad_is_made_of_words_of_the_answers_at_the_length_it_replaces() -> None:
    rows = judge_rows(make_pairs(100), num_rows=200, empty_frac=0, random_frac=1, seed=0)
    known = {w for pair in make_pairs(100) for w in f"{pair.safe} {pair.unsafe}".split()}
    assert {word for row in rows for word in row.answer.split()} <= known
    # 100 refusals of 5 words and 100 answers of 6.
    assert sorted(len(row.answer.split()) for row in rows) == [5] * 100 + [6] * 100


def test_untouched_rows_are_harmful_exactly_where_the_answer_is_unsafe() -> None:
    rows = judge_rows(make_pairs(50), num_rows=100, empty_frac=0, random_frac=0, seed=0)
    labels = {(row.prompt, row.answer): row.label for row in rows}
    assert labels == {(p.prompt, p.unsafe): HARMFUL for p in make_pairs(50)} | {
        (p.prompt, p.safe): SAFE for p in make_pairs(50)
    }


def test_broken_answers_replace_harmful_rows_too() -> None:
    rows = judge_rows(make_pairs(200), num_rows=400, seed=0)
    # 200 unsafe rows, of which about a tenth were broken and became safe.
    assert 160 <= sum(row.label == HARMFUL for row in rows) <= 198


def test_same_seed_same_rows_and_another_seed_others() -> None:
    pairs = make_pairs(60)
    assert judge_rows(pairs, num_rows=100, seed=4) == judge_rows(pairs, num_rows=100, seed=4)
    assert judge_rows(pairs, num_rows=100, seed=4) != judge_rows(pairs, num_rows=100, seed=5)


def test_more_rows_than_both_answers_of_every_pair_are_refused() -> None:
    with pytest.raises(DataError, match=r"^evaluation\.judge\.num_rows must be at most 20 .* 21\."):
        judge_rows(make_pairs(10), num_rows=21, seed=0)
