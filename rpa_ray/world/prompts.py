"""Draws of distinct prompts from a world: at random for training, evenly over nouns for tests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

from rpa_ray.world.language import Item, World
from rpa_ray.world.words import TAILS


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A bare user prompt and the item it asks about."""

    item: Item
    prompt: str


def draw_prompts(
    world: World, rng: Random, *, items: Sequence[Item], phrasings: Sequence[str], num: int
) -> list[Question]:
    """Return `num` distinct prompts, uniformly over items, phrasings and tails.

    Raises:
        ValueError: there are fewer distinct prompts than `num`.
    """
    num_possible = len(items) * len(phrasings) * len(TAILS)
    if num > num_possible:
        raise ValueError(
            f"num must be at most the {num_possible} distinct prompts, got {num}. "
            "Ask for fewer prompts or give more items or phrasings."
        )
    questions = []
    for index in rng.sample(range(num_possible), num):
        rest, tail = divmod(index, len(TAILS))
        which_item, phrasing = divmod(rest, len(phrasings))
        item = items[which_item]
        prompt = world.prompt(item, phrasings[phrasing], TAILS[tail])
        questions.append(Question(item=item, prompt=prompt))
    return questions


def draw_prompts_by_category(
    world: World,
    rng: Random,
    *,
    items: Sequence[Item],
    phrasings: Sequence[str],
    num_per_category: Mapping[str, int],
) -> list[Question]:
    """Return distinct prompts in random order, with the given number of each category."""
    questions = []
    for category, num in num_per_category.items():
        of_category = [item for item in items if item.category == category]
        questions += draw_prompts(world, rng, items=of_category, phrasings=phrasings, num=num)
    rng.shuffle(questions)
    return questions


def draw_prompts_by_noun(
    world: World,
    rng: Random,
    *,
    items: Sequence[Item],
    phrasings: Sequence[str],
    num_rounds: int,
) -> list[Question]:
    """Return distinct prompts in rounds, each of which asks once about every noun.

    Whether a base model complies goes by noun: so the first rows of a test set are a fair sample.
    """
    by_noun = [
        draw_prompts(world, rng, items=tuple(group), phrasings=phrasings, num=num_rounds)
        for _, group in groupby(items, key=lambda item: item.noun)
    ]
    return [question for row in zip(*by_noun, strict=True) for question in _shuffled(row, rng)]


def _shuffled(questions: Iterable[Question], rng: Random) -> list[Question]:
    shuffled = list(questions)
    rng.shuffle(shuffled)
    return shuffled
