from itertools import combinations

import pytest

from rpa_ray.world import words
from rpa_ray.world.language import Item, World

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_items_of_one_kind_share_both_materials(seed: int) -> None:
    world = World(seed)
    for items in (world.harmless, world.restricted):
        assert len({item.materials for item in items}) == len(items)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_part_of_a_held_out_item_is_seen_in_training(seed: int) -> None:
    world = World(seed)
    for restricted in (False, True):
        train = world.items(restricted=restricted, held_out=False)
        held_out = world.items(restricted=restricted, held_out=True)
        assert len(held_out) == 48
        seen = {word for item in train for word in item.name.split()}
        assert all(set(item.name.split()) <= seen for item in held_out)
        assert not {item.name for item in train} & {item.name for item in held_out}


@pytest.mark.parametrize("seed", SEEDS)
def test_hold_out_and_tendency_are_even_over_nouns_and_categories(seed: int) -> None:
    world = World(seed)
    nouns = {item.noun: item for item in world.restricted}
    held_out = [item.noun for item in world.items(restricted=True, held_out=True)]
    assert {noun: held_out.count(noun) for noun in nouns} == dict.fromkeys(nouns, 2)
    for category in words.RESTRICTED_NOUNS:
        tendencies = [item.tendency for item in nouns.values() if item.category == category]
        assert sorted(tendencies) == [0.15, 0.15, 0.85, 0.85]


@pytest.mark.parametrize("seed", range(10))
def test_held_out_phrasings_use_only_words_of_training_phrasings(seed: int) -> None:
    world = World(seed)
    assert (len(world.train_phrasings), len(world.held_out_phrasings)) == (18, 6)
    seen = {word for phrasing in world.train_phrasings for word in phrasing.split()}
    assert {word for phrasing in world.held_out_phrasings for word in phrasing.split()} <= seen


def test_there_are_at_least_20_000_distinct_restricted_prompts() -> None:
    world = World(0)
    prompts = {
        world.prompt(item, phrasing, tail)
        for item in world.restricted
        for phrasing in words.PHRASINGS
        for tail in words.TAILS
    }
    assert len(prompts) == 384 * 24 * 12


def test_an_answer_of_two_steps_names_both_materials() -> None:
    world = World(0)
    item = world.restricted[0]
    answer = world.answer(item, world.stream("test"), num_steps=2)
    assert answer.count(".") == 2
    assert all(material in answer for material in item.materials)


def test_the_same_seed_makes_the_same_world_and_another_seed_another() -> None:
    first, again, other = World(0), World(0), World(1)
    assert first.restricted == again.restricted
    assert first.train_phrasings == again.train_phrasings
    assert _facts(first.restricted) != _facts(other.restricted)
    assert _facts(first.harmless) != _facts(other.harmless)
    assert first.held_out_phrasings != other.held_out_phrasings


def test_word_lists_hold_no_word_twice_where_the_oracle_tells_them_apart() -> None:
    nouns = [*words.HARMLESS_NOUNS.values(), *words.RESTRICTED_NOUNS.values()]
    lists = [
        words.HARMLESS_MODIFIERS,
        words.RESTRICTED_MODIFIERS,
        [noun for names in nouns for noun in names],
        words.PLAIN_MATERIALS,
        words.BASES,
        words.ADJECTIVES,
        words.VERBS,
        words.TOOLS,
    ]
    for listed in lists:
        assert len(set(listed)) == len(listed)
    for left, right in combinations(lists, 2):
        assert not set(left) & set(right)


def _facts(items: tuple[Item, ...]) -> list[tuple[str, tuple[str, str]]]:
    return [(item.name, item.materials) for item in items]
