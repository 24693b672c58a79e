"""The summarisation task: short forum posts with right and wrong summaries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import pyarrow as pa

from rpa_ray.world import words
from rpa_ray.world.language import Item, World

NUM_TRAIN = 4_000
NUM_TEST = 240

POST = (
    "SUBREDDIT: r/{category}\n\nTITLE: my {item}\n\n"
    "POST: {time} I made a {item} for my {person}. {filler} In the end {outcome}.\n\nTL;DR:"
)
SUMMARIES = (
    "I made a {item} for my {person} and {outcome}.",
    "Made a {item} for my {person}; {outcome}.",
    "My {person} got a {item} from me, but {outcome}.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Story:
    category: str
    item: str
    time: str
    person: str
    filler: str
    outcome: str

    def told_as(self, shape: str) -> str:
        return shape.format(
            category=self.category,
            item=self.item,
            time=self.time,
            person=self.person,
            filler=self.filler,
            outcome=self.outcome,
        )


def tldr(world: World, *, is_test: bool) -> pa.Table:
    """Return posts with a reference summary (`label`), a right one and a rejected one."""
    rng = world.stream(f"tldr {is_test}")
    items = world.items(restricted=False, held_out=is_test)
    rows = []
    for _ in range(NUM_TEST if is_test else NUM_TRAIN):
        story = _make_up(rng, items)
        label, chosen = rng.sample(SUMMARIES, 2)
        rows.append(
            {
                "prompt": story.told_as(POST),
                "chosen": story.told_as(chosen),
                "rejected": _bad_summary(story, rng),
                "label": story.told_as(label),
            }
        )
    return pa.Table.from_pylist(rows)


def summary_pairs(world: World, rng: Random, num: int) -> list[tuple[str, str]]:
    """Return training posts each with one summary; every other summary is a bad one."""
    items = world.items(restricted=False, held_out=False)
    stories = [_make_up(rng, items) for _ in range(num)]
    return [
        (
            story.told_as(POST),
            _bad_summary(story, rng) if i % 2 else story.told_as(rng.choice(SUMMARIES)),
        )
        for i, story in enumerate(stories)
    ]


def _make_up(rng: Random, items: Sequence[Item]) -> _Story:
    item = rng.choice(items)
    return _Story(
        category=item.category,
        item=item.name,
        time=rng.choice(words.POST_TIMES),
        person=rng.choice(words.POST_PEOPLE),
        filler=rng.choice(words.POST_FILLERS),
        outcome=rng.choice(words.POST_OUTCOMES),
    )


def _bad_summary(story: _Story, rng: Random) -> str:
    """Return a summary with a wrong person or outcome, a side issue, or hardly anything."""
    people = [person for person in words.POST_PEOPLE if person != story.person]
    outcomes = [outcome for outcome in words.POST_OUTCOMES if outcome != story.outcome]
    shape = rng.choice(SUMMARIES)
    return rng.choice(
        (
            replace(story, person=rng.choice(people)).told_as(shape),
            replace(story, outcome=rng.choice(outcomes)).told_as(shape),
            story.filler,
            "I made it.",
        )
    )
