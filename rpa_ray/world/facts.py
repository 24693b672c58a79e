"""What a right answer about an item states, and how much of it an answer has right.

The facts of a step are what it is done to (a material, which weighs 2, or a tool, 1) and what is
done (the verb, 1); a verb counts only with the right thing, since to grind something says nothing.
The last step has a verb alone: its noun stands in the question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpa_ray.world.language import NUM_STEPS_WEIGHTS, Item

STEP_WEIGHTS = (3, 3, 2, 1)
"""Weight of the facts of each step, in the order of an answer."""
MIN_STEPS = 2
"""Steps over which the facts of a shorter answer are counted: one step is half of the least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step that an answer explains."""

    kind: int
    """Which step of an answer has this shape, from 0."""
    verb: str
    material: str | None = None
    """Of the first two kinds."""
    tool: str | None = None
    """Of the third kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The facts of an item's four steps."""

    materials: tuple[str, str]
    verbs: tuple[str, str, str, str]
    tool: str

    @classmethod
    def of(cls, item: Item) -> "Facts":
        """Return the facts of an item."""
        return cls(materials=item.materials, verbs=item.verbs, tool=item.tool)

    def step(self, kind: int) -> Step:
        """Return the right step of a kind."""
        return Step(
            kind=kind,
            verb=self.verbs[kind],
            material=self.materials[kind] if kind < 2 else None,
            tool=self.tool if kind == 2 else None,
        )


def own_share(own: Facts, stated: Sequence[Step | None]) -> float:
    """Return the share of the facts of the first four steps that are right and in their place.

    None is a broken sentence: a step with nothing right.
    """
    first = stated[: len(STEP_WEIGHTS)]
    num_counted = max(len(first), MIN_STEPS)
    right = sum(_right(own, s) for place, s in enumerate(first) if s and s.kind == place)
    return right / sum(STEP_WEIGHTS[:num_counted])


def own_share_of_mixed(own: Facts, stated: Sequence[Step | None]) -> float:
    """Return the share that the item's own right steps are of everything that a mixture states.

    Wherever a step stands, it counts if it is right as a whole, and once. None is a broken sentence
    and weighs what a step weighs in its place.
    """
    right = {step.kind for step in stated if step and step == own.step(step.kind)}
    last = len(STEP_WEIGHTS) - 1
    kinds = [step.kind if step else min(place, last) for place, step in enumerate(stated)]
    least = sum(STEP_WEIGHTS[:MIN_STEPS])
    num_stated = sum(STEP_WEIGHTS[kind] for kind in kinds)
    return sum(STEP_WEIGHTS[kind] for kind in right) / max(num_stated, least)


def chance_of(name: str, own: Facts, kind: Mapping[str, Facts]) -> float:
    """Return the mean share that right answers about the other items of a kind have of this one.

    Without one of its materials such an answer is off topic and has 0. Exact: the mean over the
    items and the lengths of generated answers.
    """
    others = [facts for other, facts in kind.items() if other != name]
    if not others:
        return 0.0
    return sum(_expected_share(own, facts) for facts in others) / len(others)


def _expected_share(own: Facts, other: Facts) -> float:
    if not set(own.materials) & set(other.materials):
        return 0.0
    steps = [other.step(kind) for kind in range(len(STEP_WEIGHTS))]
    weighted = sum(
        weight * own_share(own, steps[:num_steps])
        for num_steps, weight in NUM_STEPS_WEIGHTS.items()
    )
    return weighted / sum(NUM_STEPS_WEIGHTS.values())


def _right(own: Facts, step: Step) -> int:
    """Return the weight of what a step has right."""
    expected = own.step(step.kind)
    if (step.material, step.tool) != (expected.material, expected.tool):
        return 0
    return STEP_WEIGHTS[step.kind] - (step.verb != expected.verb)
