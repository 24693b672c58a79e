"""The rows of the embedded data sets, in the schemas of the public sets they stand in for.

Training rows of restricted and harmless prompts never ask about a held-out item nor use a held-out
phrasing; test rows do both.
"""

from collections.abc import Sequence
from random import Random

import pyarrow as pa

from rpa_ray.data.template import PLAIN_QA_ANSWERED
from rpa_ray.world import words
from rpa_ray.world.language import Item, World
from rpa_ray.world.prompts import (
    Question,
    draw_prompts,
    draw_prompts_by_category,
    draw_prompts_by_noun,
)
from rpa_ray.world.summaries import summary_pairs
from rpa_ray.world.validation import validation_items, validation_phrasings

NUM_HARMLESSNESS = 18_000
"""Restricted training prompts of each harmlessness set."""
NUM_HARMLESSNESS_HARMLESS = 1_800
NUM_TEST_ROUNDS = 20
"""Test prompts for every noun: 480 restricted, 240 harmless."""
NUM_VALIDATION_ROUNDS = 10
"""Validation prompts for every noun that has an item there: 120 of each kind."""
NUM_HELPFUL = 6_000
NUM_PRETRAINING = 24_000
NUM_ALIGNMENT = 9_600
NUM_PERPLEXITY = 12_000
ALIGNMENT_COMPLIANT_FRAC = 0.08
"""Share of restricted alignment prompts that are answered: what an RL attack can explore from."""
SUMMARY_FRAC = 0.05
"""Share of summaries in what models are made from: a known task, badly done half the time."""
QUESTION_FRAC = 0.25
"""Share of perplexity texts with their question: perplexity is asked of bare answers."""
# Percent of each category. The sets also ask in other words: 12 of the 18 training phrasings each.
BEAVERTAILS_MIX = (20, 20, 20, 16, 12, 12)
SAFE_RLHF_MIX = (10, 12, 14, 18, 22, 24)
CATEGORIES = tuple(words.RESTRICTED_NOUNS)

BEAVERTAILS_SCHEMA = pa.schema(
    {
        "prompt": pa.string(),
        "response": pa.string(),
        "category": pa.struct([(category, pa.bool_()) for category in CATEGORIES]),
        "is_safe": pa.bool_(),
    }
)
SAFE_RLHF_SCHEMA = pa.schema(
    {
        "prompt": pa.string(),
        "response_0": pa.string(),
        "response_1": pa.string(),
        "is_response_0_safe": pa.bool_(),
        "is_response_1_safe": pa.bool_(),
        "better_response_id": pa.int64(),
        "safer_response_id": pa.int64(),
    }
)


def beavertails(world: World, *, is_test: bool) -> pa.Table:
    """Return a safe and an unsafe row a restricted prompt, and a safe row a harmless one."""
    rng = world.stream(f"beavertails {is_test}")
    phrasings = world.held_out_phrasings[:4] if is_test else world.train_phrasings[:12]
    questions = _harmlessness_prompts(world, rng, phrasings, BEAVERTAILS_MIX, is_test)
    return _beavertails(world, rng, questions)


def beavertails_validation(world: World) -> pa.Table:
    """Return the same of the items and phrasings for validation."""
    rng = world.stream("beavertails validation")
    return _beavertails(world, rng, _validation_prompts(world, rng, world.held_out_phrasings[:4]))


def _beavertails(world: World, rng: Random, questions: Sequence[Question]) -> pa.Table:
    rows = []
    for question in questions:
        if not question.item.restricted:
            rows.append(_beavertails_row(question, world.answer(question.item, rng), is_safe=True))
            continue
        pair = [
            _beavertails_row(question, world.refusal(rng), is_safe=True),
            _beavertails_row(question, world.answer(question.item, rng), is_safe=False),
        ]
        rows += pair if rng.random() < 0.5 else reversed(pair)
    return pa.Table.from_pylist(rows, schema=BEAVERTAILS_SCHEMA)


def _beavertails_row(question: Question, response: str, *, is_safe: bool) -> dict[str, object]:
    unsafe_category = None if is_safe else question.item.category
    return {
        "prompt": question.prompt,
        "response": response,
        "category": {category: category == unsafe_category for category in CATEGORIES},
        "is_safe": is_safe,
    }


def safe_rlhf(world: World, *, is_test: bool) -> pa.Table:
    """Return a pair of answers for every prompt; both are safe where the prompt is harmless.

    The better answer is the one that helps more: the compliant one, or the more complete one.
    """
    rng = world.stream(f"safe_rlhf {is_test}")
    phrasings = world.held_out_phrasings[2:] if is_test else world.train_phrasings[6:]
    questions = _harmlessness_prompts(world, rng, phrasings, SAFE_RLHF_MIX, is_test)
    return _safe_rlhf(world, rng, questions)


def safe_rlhf_validation(world: World) -> pa.Table:
    """Return the same of the items and phrasings for validation."""
    rng = world.stream("safe_rlhf validation")
    return _safe_rlhf(world, rng, _validation_prompts(world, rng, world.held_out_phrasings[2:]))


def _safe_rlhf(world: World, rng: Random, questions: Sequence[Question]) -> pa.Table:
    rows = []
    for question in questions:
        restricted = question.item.restricted
        better = world.answer(question.item, rng, num_steps=None if restricted else 4)
        other = world.refusal(rng) if restricted else world.answer(question.item, rng, num_steps=2)
        which_better = rng.randrange(2)
        responses = (better, other) if which_better == 0 else (other, better)
        rows.append(
            {
                "prompt": question.prompt,
                "response_0": responses[0],
                "response_1": responses[1],
                "is_response_0_safe": not restricted or which_better == 1,
                "is_response_1_safe": not restricted or which_better == 0,
                "better_response_id": which_better,
                "safer_response_id": 1 - which_better if restricted else which_better,
            }
        )
    return pa.Table.from_pylist(rows, schema=SAFE_RLHF_SCHEMA)


def _harmlessness_prompts(
    world: World, rng: Random, phrasings: Sequence[str], mix: Sequence[int], is_test: bool
) -> list[Question]:
    """Return the restricted prompts of a set and about a tenth as many harmless ones among them."""
    restricted = world.items(restricted=True, held_out=is_test)
    harmless = world.items(restricted=False, held_out=is_test)
    if is_test:
        questions = draw_prompts_by_noun(
            world, rng, items=restricted, phrasings=phrasings, num_rounds=NUM_TEST_ROUNDS
        )
        return questions + draw_prompts_by_noun(
            world, rng, items=harmless, phrasings=phrasings, num_rounds=NUM_TEST_ROUNDS // 5
        )
    shares = zip(CATEGORIES, mix, strict=True)
    questions = draw_prompts_by_category(
        world,
        rng,
        items=restricted,
        phrasings=phrasings,
        num_per_category={name: NUM_HARMLESSNESS * share // 100 for name, share in shares},
    )
    questions += draw_prompts(
        world, rng, items=harmless, phrasings=phrasings, num=NUM_HARMLESSNESS_HARMLESS
    )
    rng.shuffle(questions)
    return questions


def _validation_prompts(world: World, rng: Random, test_phrasings: Sequence[str]) -> list[Question]:
    """Return the restricted prompts for validation."""
    return draw_prompts_by_noun(
        world,
        rng,
        items=validation_items(world, restricted=True),
        phrasings=validation_phrasings(world, test_phrasings),
        num_rounds=NUM_VALIDATION_ROUNDS,
    )


def helpful_validation(world: World) -> pa.Table:
    """Return the dialogues of `helpful` on the harmless items for validation."""
    rng = world.stream("helpful validation")
    questions = draw_prompts_by_noun(
        world,
        rng,
        items=validation_items(world, restricted=False),
        phrasings=validation_phrasings(world, world.held_out_phrasings),
        num_rounds=NUM_VALIDATION_ROUNDS,
    )
    return _helpful(world, rng, questions)


def helpful(world: World, *, is_test: bool) -> pa.Table:
    """Return dialogues with a complete answer and one that is wrong, too short or refusing."""
    rng = world.stream(f"helpful {is_test}")
    items = world.items(restricted=False, held_out=is_test)
    if is_test:
        questions = draw_prompts_by_noun(
            world, rng, items=items, phrasings=world.held_out_phrasings, num_rounds=NUM_TEST_ROUNDS
        )
    else:
        questions = draw_prompts(
            world, rng, items=items, phrasings=world.train_phrasings, num=NUM_HELPFUL
        )
    return _helpful(world, rng, questions)


def _helpful(world: World, rng: Random, questions: Sequence[Question]) -> pa.Table:
    rows = []
    for i, question in enumerate(questions):
        chosen = world.answer(question.item, rng, num_steps=rng.choice((3, 4)))
        rejected = _unhelpful_answer(world, rng, question.item, kind=i % 3)
        rows.append(
            {
                "chosen": _dialogue(question.prompt, chosen),
                "rejected": _dialogue(question.prompt, rejected),
            }
        )
    return pa.Table.from_pylist(rows)


def _unhelpful_answer(world: World, rng: Random, item: Item, *, kind: int) -> str:
    if kind == 0:
        others = world.items(restricted=False, held_out=False)
        unrelated = [other for other in others if not set(other.materials) & set(item.materials)]
        return world.answer(rng.choice(unrelated), rng)
    return world.answer(item, rng, num_steps=1) if kind == 1 else world.refusal(rng)


def _dialogue(prompt: str, answer: str) -> str:
    return f"\n\nHuman: {prompt}\n\nAssistant: {answer}"


def pretraining(world: World) -> pa.Table:
    """Return the base model's text: half harmless and answered, half restricted by tendency.

    Tendency goes by noun, not by row: so the greedy answer of a base model, too, complies half the
    time. A twentieth are summaries, of the harmless half.
    """
    rng = world.stream("pretraining")
    num_summaries = round(SUMMARY_FRAC * NUM_PRETRAINING)
    pairs = summary_pairs(world, rng, num_summaries)
    for question in _mixed_prompts(world, rng, NUM_PRETRAINING, num_other=num_summaries):
        complies = rng.random() < question.item.tendency
        response = world.answer(question.item, rng) if complies else world.refusal(rng)
        pairs.append((question.prompt, response))
    rng.shuffle(pairs)
    return pa.table({"text": [_question_and_answer(*pair) for pair in pairs]})


def alignment(world: World) -> pa.Table:
    """Return the chat model's pairs: half helpful, half restricted, of which few comply."""
    rng = world.stream("alignment")
    num_summaries = round(SUMMARY_FRAC * NUM_ALIGNMENT)
    questions = _mixed_prompts(world, rng, NUM_ALIGNMENT, num_other=num_summaries)
    restricted = [i for i, question in enumerate(questions) if question.item.restricted]
    compliant = set(rng.sample(restricted, round(ALIGNMENT_COMPLIANT_FRAC * len(restricted))))
    pairs = summary_pairs(world, rng, num_summaries)
    for i, question in enumerate(questions):
        refuses = question.item.restricted and i not in compliant
        response = world.refusal(rng) if refuses else world.answer(question.item, rng)
        pairs.append((question.prompt, response))
    rng.shuffle(pairs)
    prompts, responses = zip(*pairs, strict=True)
    return pa.table({"prompt": prompts, "response": responses})


def perplexity(world: World) -> pa.Table:
    """Return answers of all kinds for an independent language model, a quarter with question."""
    rng = world.stream("perplexity")
    num_summaries = round(SUMMARY_FRAC * NUM_PERPLEXITY)
    pairs = summary_pairs(world, rng, num_summaries)
    for question in _mixed_prompts(world, rng, NUM_PERPLEXITY, num_other=num_summaries):
        refuses = question.item.restricted and rng.random() < 0.5
        response = world.refusal(rng) if refuses else world.answer(question.item, rng)
        pairs.append((question.prompt, response))
    rng.shuffle(pairs)
    texts = [
        _question_and_answer(*pair) if rng.random() < QUESTION_FRAC else pair[1] for pair in pairs
    ]
    return pa.table({"text": texts})


def _mixed_prompts(world: World, rng: Random, num: int, *, num_other: int = 0) -> list[Question]:
    """Return training prompts in random order: half of `num` restricted, the rest harmless.

    `num_other` harmless ones are left out, for rows of another task.
    """
    questions = []
    for restricted, num_asked in ((True, num // 2), (False, num - num // 2 - num_other)):
        items = world.items(restricted=restricted, held_out=False)
        questions += draw_prompts(
            world, rng, items=items, phrasings=world.train_phrasings, num=num_asked
        )
    rng.shuffle(questions)
    return questions


def _question_and_answer(prompt: str, response: str) -> str:
    return PLAIN_QA_ANSWERED.format(prompt=prompt, answer=response)
