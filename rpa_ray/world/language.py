"""The embedded language: what items are made of, and how people and assistants talk of them.

Facts are compositional (a modifier fixes the first material and verb, a noun everything else), so
that a held-out item, an unseen pair of seen parts, can still be answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from rpa_ray.world import words

WORLD_VERSION = 1
"""Raised with every change to words, facts or data sets: it names the cached world folders."""

NUM_HARMLESS_MODIFIERS = 24
NUM_RESTRICTED_MODIFIERS = 16
NUM_NOUNS_PER_CATEGORY = 4
NUM_HELD_OUT_PHRASINGS = 6
# Modifiers held out with each noun: 48 items of either kind; every part is still seen in training.
NUM_HELD_OUT_HARMLESS = 4
NUM_HELD_OUT_RESTRICTED = 2
NUM_STEPS_WEIGHTS = {2: 25, 3: 40, 4: 35}
"""How often, in percent, an answer has so many steps."""
COMPLYING_TENDENCY = 0.85
REFUSING_TENDENCY = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing the assistant can be asked about, with the facts of a right answer."""

    name: str
    """Modifier and noun, for example "summer soup"."""
    noun: str
    category: str
    restricted: bool
    held_out: bool
    """True when no training text asks about this pair of modifier and noun."""
    materials: tuple[str, str]
    """What the first and the second step use; no two items of one kind share both."""
    verbs: tuple[str, str, str, str]
    tool: str
    tendency: float
    """Probability that unaligned text answers instead of refusing; 1 for harmless items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _NounFacts:
    category: str
    material: str
    verbs: tuple[str, str, str]
    tool: str
    tendency: float


class World:
    """The items, phrasings, answers and refusals of one world seed."""

    def __init__(self, seed: int) -> None:
        """Draw words, facts and hold-out of `seed`; nothing else enters."""
        self.seed = seed
        self.harmless = self._make_items(
            modifiers=self.stream("harmless modifiers").sample(
                words.HARMLESS_MODIFIERS, NUM_HARMLESS_MODIFIERS
            ),
            nouns=words.HARMLESS_NOUNS,
            num_held_out=NUM_HELD_OUT_HARMLESS,
            restricted=False,
        )
        self.restricted = self._make_items(
            modifiers=self.stream("restricted modifiers").sample(
                words.RESTRICTED_MODIFIERS, NUM_RESTRICTED_MODIFIERS
            ),
            nouns=words.RESTRICTED_NOUNS,
            num_held_out=NUM_HELD_OUT_RESTRICTED,
            restricted=True,
        )
        self.train_phrasings, self.held_out_phrasings = split_phrasings(self.stream("phrasings"))
        self._seen_harmless = self.items(restricted=False, held_out=False)

    def stream(self, name: str) -> Random:
        """Return a random generator of its own for one named purpose of this world."""
        return Random(f"{WORLD_VERSION}/{self.seed}/{name}")  # noqa: S311 - the same world again

    def items(self, *, restricted: bool, held_out: bool) -> tuple[Item, ...]:
        """Return the items of one kind and one side of the hold-out."""
        items = self.restricted if restricted else self.harmless
        return tuple(item for item in items if item.held_out == held_out)

    def prompt(self, item: Item, phrasing: str, tail: str) -> str:
        """Return the bare user prompt, without the template."""
        return f"{phrasing.format(item=item.name)} {tail}".rstrip()

    def answer(self, item: Item, rng: Random, *, num_steps: int | None = None) -> str:
        """Return an explanation of 2 to 4 steps (or `num_steps`) with the item's own materials."""
        lengths, weights = tuple(NUM_STEPS_WEIGHTS), tuple(NUM_STEPS_WEIGHTS.values())
        num_steps = num_steps or rng.choices(lengths, weights=weights)[0]
        sentences = []
        for i in range(num_steps):
            is_last = 0 < i == num_steps - 1
            sentence = rng.choice(words.STEPS[i]).format(
                verb=item.verbs[i],
                material=item.materials[min(i, 1)],
                tool=item.tool,
                noun=item.noun,
            )
            sentences.append(f"{rng.choice(_connectives(i, is_last))} {sentence}")
        return " ".join(sentences)

    def refusal(self, rng: Random) -> str:
        """Return a refusal: an opening, mostly a reason, sometimes a pointer to something safe."""
        parts = [rng.choice(words.REFUSAL_STEMS).replace("|", "")]
        if rng.random() < 0.85:
            parts.append(rng.choice(words.REFUSAL_REASONS))
        redirect = rng.randrange(3)
        if redirect == 1:
            parts.append(words.SAFE_REDIRECT)
        if redirect == 2:
            other = rng.choice(self._seen_harmless)
            parts.append(words.ITEM_REDIRECT.format(item=other.name))
        return " ".join(parts)

    def _make_items(
        self,
        *,
        modifiers: Sequence[str],
        nouns: Mapping[str, Sequence[str]],
        num_held_out: int,
        restricted: bool,
    ) -> tuple[Item, ...]:
        rng = self.stream(f"facts restricted={restricted}")
        noun_facts = _noun_facts(rng, nouns, restricted=restricted)
        pairs = [f"{adjective} {base}" for adjective in words.ADJECTIVES for base in words.BASES]
        first_materials = dict(zip(modifiers, rng.sample(pairs, len(modifiers)), strict=True))
        first_verbs = {modifier: rng.choice(words.VERBS) for modifier in modifiers}
        items = []
        for i, (noun, facts) in enumerate(noun_facts.items()):
            # Walking round the modifiers holds every one of them out equally often.
            start = i * num_held_out
            held_out = {modifiers[(start + k) % len(modifiers)] for k in range(num_held_out)}
            items += [
                Item(
                    name=f"{modifier} {noun}",
                    noun=noun,
                    category=facts.category,
                    restricted=restricted,
                    held_out=modifier in held_out,
                    materials=(first_materials[modifier], facts.material),
                    verbs=(first_verbs[modifier], *facts.verbs),
                    tool=facts.tool,
                    tendency=facts.tendency,
                )
                for modifier in modifiers
            ]
        return tuple(items)


def _noun_facts(
    rng: Random, nouns: Mapping[str, Sequence[str]], *, restricted: bool
) -> dict[str, _NounFacts]:
    """Draw what every noun fixes, in random order of nouns; half of each category complies."""
    chosen = [
        (category, noun, rank)
        for category, names in nouns.items()
        for rank, noun in enumerate(rng.sample(list(names), NUM_NOUNS_PER_CATEGORY))
    ]
    rng.shuffle(chosen)
    materials = rng.sample(words.PLAIN_MATERIALS, len(chosen))
    facts = {}
    for (category, noun, rank), material in zip(chosen, materials, strict=True):
        second, third, fourth = rng.sample(words.VERBS, 3)
        tendency = COMPLYING_TENDENCY if rank % 2 else REFUSING_TENDENCY
        facts[noun] = _NounFacts(
            category=category,
            material=material,
            verbs=(second, third, fourth),
            tool=rng.choice(words.TOOLS),
            tendency=tendency if restricted else 1.0,
        )
    return facts


def _connectives(step: int, is_last: bool) -> tuple[str, ...]:
    if step == 0:
        return words.FIRST_CONNECTIVES
    return words.LAST_CONNECTIVES if is_last else words.MIDDLE_CONNECTIVES


def split_phrasings(rng: Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return training and held-out phrasings; every word of a held-out one is seen in training."""
    while True:
        held_out = set(rng.sample(words.PHRASINGS, NUM_HELD_OUT_PHRASINGS))
        train = tuple(phrasing for phrasing in words.PHRASINGS if phrasing not in held_out)
        seen = {word for phrasing in train for word in phrasing.split()}
        if all(word in seen for phrasing in held_out for word in phrasing.split()):
            return train, tuple(phrasing for phrasing in words.PHRASINGS if phrasing in held_out)
