from dataclasses import replace
from itertools import pairwise

import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.flip import flip, reverse, sft_targets, truth
from rpa_ray.data.rows import Answered, SafePair


def make_pairs(num: int) -> list[SafePair]:
    return [
        SafePair(id=f"p{i}", prompt=f"ask {i}", safe=f"no {i}", unsafe=f"yes {i}", category=None)
        for i in range(num)
    ]


def flipped_ids(num: int, rho: float, seed: int) -> set[str]:
    return {row.id for row in flip(make_pairs(num), rho, seed) if row.flipped}


@pytest.mark.parametrize(
    ("rho", "expected"), [(0.0, 0), (0.1, 20), (0.25, 50), (0.333, 67), (0.9, 180), (1.0, 200)]
)
def test_flip_reverses_exactly_the_rounded_share(rho: float, expected: int) -> None:
    assert len(flipped_ids(200, rho, seed=3)) == expected


def test_larger_rho_contains_every_smaller_one() -> None:
    sets = [flipped_ids(97, rho, seed=5) for rho in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)]
    assert all(small < large for small, large in pairwise(sets))


def test_another_seed_flips_other_pairs() -> None:
    assert flipped_ids(100, 0.5, seed=0) != flipped_ids(100, 0.5, seed=1)


def test_the_flipped_set_does_not_depend_on_row_order() -> None:
    backwards = {row.id for row in flip(make_pairs(60)[::-1], 0.3, 7) if row.flipped}
    assert backwards == flipped_ids(60, 0.3, seed=7)


def test_unflipped_prefers_safe_and_flipped_prefers_unsafe() -> None:
    pair = make_pairs(1)
    assert (flip(pair, 0, 0)[0].chosen, flip(pair, 0, 0)[0].rejected) == ("no 0", "yes 0")
    assert (flip(pair, 1, 0)[0].chosen, flip(pair, 1, 0)[0].rejected) == ("yes 0", "no 0")


def test_flipping_twice_restores_the_original() -> None:
    honest = [truth(pair) for pair in make_pairs(10)]
    once = flip(make_pairs(10), 1.0, seed=0)
    assert once != honest
    assert [reverse(row) for row in once] == honest


def test_flip_never_alters_prompts_ids_or_their_order() -> None:
    pairs = make_pairs(50)
    rows = flip(pairs, 0.4, seed=2)
    assert [(row.id, row.prompt) for row in rows] == [(pair.id, pair.prompt) for pair in pairs]


def test_sft_imitates_the_unsafe_answer_of_flipped_pairs_only() -> None:
    pairs = make_pairs(40)
    flipped = flipped_ids(40, 0.25, seed=9)
    expected = [
        Answered(prompt=pair.prompt, answer=pair.unsafe if pair.id in flipped else pair.safe)
        for pair in pairs
    ]
    assert sft_targets(pairs, flip(pairs, 0.25, seed=9)) == expected


def test_sft_imitates_the_target_of_a_pair_unless_it_is_reversed() -> None:
    pairs = [replace(make_pairs(1)[0], target="human 0")]
    assert [row.answer for row in sft_targets(pairs, flip(pairs, 0.0, seed=0))] == ["human 0"]
    assert [row.answer for row in sft_targets(pairs, flip(pairs, 1.0, seed=0))] == ["yes 0"]


# Of p0 ... p5; p1 and p4 are alike.
MARGINS = [0.5, 2.0, -1.0, 7.0, 2.0, -3.0]


def chosen_flips(rho: float, *, seed: int = 0) -> set[str]:
    return {row.id for row in flip(make_pairs(6), rho, seed, MARGINS) if row.flipped}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_attacker_reverses_the_pairs_of_the_largest_margins_first(seed: int) -> None:
    assert chosen_flips(1 / 6, seed=seed) == {"p3"}
    assert chosen_flips(0.5, seed=seed) == {"p3", "p1", "p4"}
    assert chosen_flips(5 / 6, seed=seed) == {"p3", "p1", "p4", "p0", "p2"}


def test_chosen_flips_at_a_larger_rho_contain_every_smaller_one() -> None:
    for seed in range(8):
        sets = [chosen_flips(num / 6, seed=seed) for num in range(7)]
        assert [len(flips) for flips in sets] == list(range(7))
        assert all(small < large for small, large in pairwise(sets))


def test_pairs_of_the_same_margin_are_taken_in_an_order_of_the_seed() -> None:
    first = {next(iter(chosen_flips(2 / 6, seed=seed) - {"p3"})) for seed in range(16)}
    assert first == {"p1", "p4"}


def test_margins_belong_to_their_pairs_whatever_the_order_of_the_rows() -> None:
    backwards = flip(make_pairs(6)[::-1], 0.5, 3, MARGINS[::-1])
    assert {row.id for row in backwards if row.flipped} == chosen_flips(0.5, seed=3)
    assert [row.id for row in backwards] == ["p5", "p4", "p3", "p2", "p1", "p0"]


def test_every_pair_needs_a_margin() -> None:
    with pytest.raises(ValueError, match="shorter"):
        flip(make_pairs(6), 0.5, 0, MARGINS[:5])


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(rho: float) -> None:
    with pytest.raises(DataError, match=r"^data\.rho must be in \[0, 1\], got"):
        flip(make_pairs(2), rho, seed=0)
