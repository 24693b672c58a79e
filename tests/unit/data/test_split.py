from itertools import combinations

import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.flip import flip
from rpa_ray.data.rows import SafePair
from rpa_ray.data.split import (
    ROLE_SHARES,
    ROLES,
    by_role,
    draw,
    is_held_out,
    manifest,
    normalise,
    role_of,
)


def make_pairs(prompts: list[str]) -> list[SafePair]:
    return [
        SafePair(id=f"{i:05d}", prompt=prompt, safe="no", unsafe="yes", category=None)
        for i, prompt in enumerate(prompts)
    ]


def test_normalise_ignores_case_and_white_space() -> None:
    assert normalise("  How\tdo I\n\nBake? ") == "how do i bake?"


def test_role_shares_sum_to_one() -> None:
    assert sum(ROLE_SHARES.values()) == pytest.approx(1.0)


def test_training_pairs_about_prompts_that_are_evaluated_without_a_pair_are_left_out() -> None:
    roles = by_role(make_pairs(["a", "b", "c"]), make_pairs(["B"]), ["  C"])
    assert [pair.prompt for role in ROLE_SHARES for pair in roles[role]] == ["a"]
    assert [pair.prompt for pair in roles["evaluation"]] == ["B"]


def test_roles_have_their_shares_of_ten_thousand_prompts() -> None:
    roles = by_role(make_pairs([f"prompt {i}" for i in range(10_000)]), [])
    for role, share in ROLE_SHARES.items():
        # Four standard deviations of a share at 10,000 prompts are at most 0.02.
        assert len(roles[role]) / 10_000 == pytest.approx(share, abs=0.02)


def test_no_two_roles_share_a_prompt_even_when_it_is_spelt_differently() -> None:
    prompts = [f"Ask {i % 300}" if i % 2 else f"  ask  {i % 300} " for i in range(900)]
    evaluation = make_pairs([f"ASK {i}" for i in range(40)])
    validation = make_pairs([f"ask  {i}" for i in range(40, 60)])
    roles = by_role(make_pairs(prompts), evaluation, validation=validation)
    assert set(roles) == set(ROLES)
    seen = {role: {normalise(pair.prompt) for pair in rows} for role, rows in roles.items()}
    assert all(seen.values())
    assert all(seen[a].isdisjoint(seen[b]) for a, b in combinations(ROLES, 2))


def test_training_pairs_about_evaluation_prompts_are_left_out() -> None:
    roles = by_role(make_pairs(["a", "b", "c"]), make_pairs(["B"]))
    assert sum(len(roles[role]) for role in ROLE_SHARES) == 2
    assert [pair.prompt for pair in roles["evaluation"]] == ["B"]


@pytest.mark.parametrize(
    ("prompt", "role"),
    # The first 13 hex digits of sha256("4:role20:how do i mend a cup?") over 16**13, and so on.
    [
        ("how do i mend a cup?", "attack"),  # 0.118, below 0.60
        ("how do i patch a kite?", "reward_model"),  # 0.716, below 0.75
        ("how do i fold 6 napkins?", "defence"),  # 0.775, below 0.82
        ("How do I  bake", "classifier"),  # 0.923
    ],
)
def test_role_of_a_prompt_is_fixed_for_ever(prompt: str, role: str) -> None:
    assert role_of(prompt) == role


def test_a_tenth_of_prompts_is_held_out_of_a_single_file() -> None:
    held_out = sum(is_held_out(f"prompt {i}") for i in range(10_000))
    assert held_out == pytest.approx(1000, abs=120)


def test_a_larger_draw_begins_with_the_smaller_one() -> None:
    pairs = make_pairs([f"p{i}" for i in range(50)])
    small = draw(pairs, 10, seed=1, role="attack", key="data.num_samples")
    large = draw(pairs[::-1], 30, seed=1, role="attack", key="data.num_samples")
    assert large[:10] == small
    assert len({pair.id for pair in large}) == 30


def test_draws_differ_by_seed_and_by_role() -> None:
    pairs = make_pairs([f"p{i}" for i in range(50)])
    first = draw(pairs, 20, seed=1, role="attack", key="k")
    assert draw(pairs, 20, seed=2, role="attack", key="k") != first
    assert draw(pairs, 20, seed=1, role="defence", key="k") != first


def test_flipped_rows_do_not_come_first_in_a_draw() -> None:
    drawn = draw(make_pairs([f"p{i}" for i in range(400)]), 400, seed=0, role="attack", key="k")
    flags = [row.flipped for row in flip(drawn, 0.5, seed=0)]
    # Half of 200 is 100; four standard deviations of the hypergeometric count are 20.
    assert sum(flags[:200]) == pytest.approx(100, abs=20)


def test_asking_for_more_rows_than_there_are_names_key_and_number() -> None:
    with pytest.raises(DataError) as error:
        draw(make_pairs(["a", "b"]), 3, seed=0, role="attack", key="data.num_samples")
    assert str(error.value) == (
        "data.num_samples must be at most 2 (the rows of role 'attack'), got 3. "
        "Lower it or bring a larger data set."
    )


def test_manifest_changes_with_content_and_not_with_order() -> None:
    pairs = make_pairs(["a", "A ", "b"])
    one = manifest({"attack": pairs})["attack"]
    assert (one.num_rows, one.num_prompts) == (3, 2)
    assert manifest({"attack": pairs[::-1]})["attack"] == one
    assert manifest({"attack": pairs[:2]})["attack"].sha256 != one.sha256
