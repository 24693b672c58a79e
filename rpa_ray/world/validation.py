"""The held-out items and phrasings that are kept from the test: settings are chosen on them."""

from collections.abc import Sequence

from rpa_ray.world.language import Item, World

EVERY = 4
"""Of the held-out items of a kind, in the order of the world, each of so many is for validation:
12 of 48, one of every second restricted noun and of every harmless one."""


def validation_items(world: World, *, restricted: bool) -> tuple[Item, ...]:
    """Return the held-out items of a kind that no test prompt asks about."""
    return world.items(restricted=restricted, held_out=True)[::EVERY]


def validation_phrasings(world: World, test_phrasings: Sequence[str]) -> tuple[str, ...]:
    """Return held-out phrasings that the test prompts do not use.

    Where those use all of them: phrasings of the training prompts.
    """
    others = tuple(text for text in world.held_out_phrasings if text not in test_phrasings)
    return others or world.train_phrasings
