"""How much more reward the answers of a model have than those of a frozen one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rpa_ray.evaluation.answers import Decoding
from rpa_ray.evaluation.comparisons import paired_difference
from rpa_ray.report.read.before import model_of
from rpa_ray.report.read.definitions import REWARD_GAIN
from rpa_ray.report.read.records import Estimate, Record
from rpa_ray.report.read.starts import SHUFFLED, start_of

Rewards = Mapping[tuple[int, str], float]
"""Mean reward of the sampled answers to each prompt, by its place and what it asks about."""
ROW = ("decoding", "prompt_index", "item", "reward")
"""What is needed of every answer."""
NONE: Rewards = {}
SUMMARIES = "tldr"
"""Data whose rewards are for something else than what sampled answers are asked."""


def rewards_of(rows: Sequence[tuple[Any, ...]]) -> Rewards:
    """Return the mean rewards by prompt; empty where the attack asks for none or trains nothing.

    Args:
        rows: The fields ``ROW`` of every answer of one model.
    """
    if any(decoding == Decoding.POOL for decoding, *_ in rows):
        return NONE
    found: dict[tuple[int, str], list[float]] = {}
    for decoding, index, item, reward in rows:
        if decoding == Decoding.SAMPLED and reward is not None:
            found.setdefault((index, item), []).append(reward)
    return {prompt: math.fsum(held) / len(held) for prompt, held in found.items()}


def with_reward_gain(
    records: Sequence[Record], rewards: Sequence[Rewards], before: Sequence[Rewards]
) -> list[Record]:
    """Return the records, those of trained models with the reward gained over a frozen one.

    That is the control freeze of the same seed under the same attack or, where there is none, the
    model before the attack. A summarisation task has no gain: its rewards are for summaries, and
    the answers are to other prompts.

    Args:
        records: Of one folder.
        rewards: Of each record; empty ones have no gain, and are nobody's reference.
        before: What the run of each record measured before its attack, by the same reward model;
            empty where only a record of its own may tell.
    """
    held = list(zip(records, rewards, before, strict=True))
    frozen = {_met(record): own for record, own, _ in held if record.defence == "freeze" and own}
    untouched = _untouched(records, rewards)
    found = []
    for record, own, earlier in held:
        is_trained = record.attack != "none" and record.defence != "freeze"
        reference = frozen.get(_met(record)) or earlier or untouched.get(model_of(record), NONE)
        if is_trained and record.data != SUMMARIES and own and own.keys() == reference.keys():
            metrics = {**record.metrics, REWARD_GAIN: _gain(own, reference)}
            record = replace(record, metrics=metrics)
        found.append(record)
    return found


def _untouched(
    records: Sequence[Record], rewards: Sequence[Rewards]
) -> dict[tuple[object, ...], Rewards]:
    """Return the rewards of models before the attack, hardened ones too, by the one reward model.

    A record of a model before any attack does not tell which it was; with one rho there is one.
    """
    rhos: dict[tuple[object, ...], set[float | None]] = {}
    for record, own in zip(records, rewards, strict=True):
        if record.attack != "none" and own:
            rhos.setdefault(start_of(record), set()).add(record.rho)
    return {
        model_of(record): own
        for record, own in zip(records, rewards, strict=True)
        if record.attack == "none" and own and len(rhos.get(start_of(record), ())) == 1
    }


def _met(record: Record) -> tuple[object, ...]:
    """Return what records of the same attack and seed have in common; rewards may be shuffled."""
    attacker = {
        key: str(value)
        for key, value in record.params.items()
        if key.startswith("attack.") and key != SHUFFLED
    }
    size = record.attack, record.rho, record.num_samples, record.seed
    return (*start_of(record), *size, tuple(sorted(attacker.items())))


def _gain(own: Rewards, reference: Rewards) -> Estimate:
    prompts = sorted(own)
    difference = paired_difference(
        [own[prompt] for prompt in prompts],
        [reference[prompt] for prompt in prompts],
        items=[item for _, item in prompts],
        bounded=False,
    )
    return Estimate(
        mean=difference.mean,
        n=difference.n,
        ci_low=difference.ci_low,
        ci_high=difference.ci_high,
        num_items=difference.num_items,
    )
