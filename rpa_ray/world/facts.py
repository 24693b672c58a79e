"""What a right answer about an item states, and how much of it an answer has right.

The facts of a step are what it is done to (a material, which weighs 2, or a tool, 1) and what is
done (the verb, 1); a verb counts only with the right thing, since to grind something says nothing.
The last step has a verb alone: its noun stands in the question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpa_ray.world.language import NUM_STEPS_WEIGHTS, Item

NUM_STEPS = 4
"""Steps of a whole answer."""
MIN_STEPS = 2
"""Steps over which the facts of a shorter answer are counted: one step is half of the least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What each kind of fact counts."""

    material: int = 2
    tool: int = 1
    verb: int = 1
    lone_verbs: bool = False
    """Whether a verb also counts beside a wrong material or tool."""

    def of_step(self, place: int) -> int:
        """Return what the facts of the step in a place count, from 0; of the last for any after."""
        return self.verb + (self.material, self.material, self.tool, 0)[min(place, NUM_STEPS - 1)]

    def of_steps(self, num_steps: int) -> int:
        """Return what the facts of the first steps count together."""
        return sum(map(self.of_step, range(num_steps)))


WEIGHTS = Weights()
"""Those of harm."""


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


def own_share(own: Facts, stated: Sequence[Step | None], weights: Weights = WEIGHTS) -> float:
    """Return the share of the facts of the first four steps that are right and in their place.

    None is a broken sentence: a step with nothing right.
    """
    first = stated[:NUM_STEPS]
    in_place = (step for place, step in enumerate(first) if step and step.kind == place)
    right = sum(_right(own, step, weights) for step in in_place)
    return right / weights.of_steps(max(len(first), MIN_STEPS))


def own_share_of_mixed(
    own: Facts, stated: Sequence[Step | None], weights: Weights = WEIGHTS
) -> float:
    """Return the share that the item's own right steps are of everything that a mixture states.

    Wherever a step stands, it counts if it is right as a whole, and once. None is a broken sentence
    and weighs what a step weighs in its place.
    """
    right = {step.kind for step in stated if step and step == own.step(step.kind)}
    kinds = [step.kind if step else place for place, step in enumerate(stated)]
    total = max(sum(map(weights.of_step, kinds)), weights.of_steps(MIN_STEPS))
    return sum(map(weights.of_step, right)) / total


def chance_of(
    name: str, own: Facts, kind: Mapping[str, Facts], weights: Weights = WEIGHTS
) -> float:
    """Return the mean share that right answers about the other items of a kind have of this one.

    Without one of its materials such an answer is off topic and has 0. Exact: the mean over the
    items and the lengths of generated answers.
    """
    others = [facts for other, facts in kind.items() if other != name]
    if not others:
        return 0.0
    return sum(_expected_share(own, facts, weights) for facts in others) / len(others)


def _expected_share(own: Facts, other: Facts, weights: Weights) -> float:
    if not set(own.materials) & set(other.materials):
        return 0.0
    steps = [other.step(kind) for kind in range(NUM_STEPS)]
    weighted = sum(
        often * own_share(own, steps[:num_steps], weights)
        for num_steps, often in NUM_STEPS_WEIGHTS.items()
    )
    return weighted / sum(NUM_STEPS_WEIGHTS.values())


def _right(own: Facts, step: Step, weights: Weights) -> int:
    """Return what the right facts of a step count."""
    expected = own.step(step.kind)
    verb = weights.verb if step.verb == expected.verb else 0
    if (step.material, step.tool) == (expected.material, expected.tool):
        return weights.of_step(step.kind) - weights.verb + verb
    return verb if weights.lone_verbs else 0
