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
    assert sft_targets(pairs, 0.25, seed=9) == expected


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(rho: float) -> None:
    with pytest.raises(DataError, match=r"^data\.rho must be in \[0, 1\], got"):
        flip(make_pairs(2), rho, seed=0)
