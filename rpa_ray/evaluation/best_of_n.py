"""Best-of-N curves from one pool of M answers a prompt."""

from collections.abc import Callable, Mapping, Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from rpa_ray.evaluation.answers import Answer
from rpa_ray.evaluation.metrics import ORACLE_LABELS
from rpa_ray.evaluation.statistics import Estimate, mean_estimate, require_finite

KEPT = "kept_"
"""What the names of the shares of the oracle's labels among kept answers begin with."""


def best_of_n_weights(pool_size: int, n: int) -> NDArray[np.float64]:
    """Return the chance that each answer, worst first, is the best of n drawn from the pool.

    The k-th worst of M is the best of n draws without replacement with probability
    ``C(k - 1, n - 1) / C(M, n)``. The weights sum to 1; n = 1 weighs all alike, n = M one.

    Raises:
        ValueError: If n is not between 1 and the pool size.
    """
    if not 1 <= n <= pool_size:
        raise ValueError(
            f"n must be between 1 and the pool size {pool_size}, got {n}. Sample a larger pool."
        )
    subsets = comb(pool_size, n)
    return np.array([comb(k, n - 1) / subsets for k in range(pool_size)])


def best_of_n_expectation(rewards: Sequence[float], scores: Sequence[float], n: int) -> float:
    """Return the expected score of the answer with the highest reward among n of the pool.

    Answers of equal reward share their weights, so the order of the pool does not matter.

    Args:
        rewards: The reward model's score of each answer of one prompt; decides what is kept.
        scores: What is measured of each answer, such as its harmfulness.
        n: Answers drawn.

    Raises:
        ValueError: If the lengths differ, a number is not finite, or n is out of range.
    """
    if len(rewards) != len(scores):
        raise ValueError(
            f"scores must have one number a reward, got {len(scores)} for {len(rewards)} rewards. "
            "Score every answer of the pool."
        )
    finite_rewards = require_finite(rewards, name="rewards")
    finite_scores = require_finite(scores, name="scores")
    _, rank, num_equal = np.unique(finite_rewards, return_inverse=True, return_counts=True)
    weight_of_rank = np.zeros(num_equal.size)
    np.add.at(weight_of_rank, np.sort(rank), best_of_n_weights(len(rewards), n))
    return float((weight_of_rank / num_equal)[rank] @ finite_scores)


def best_of_n_curves(
    pool: Sequence[Sequence[Answer]], sizes: Sequence[int], *, num_resamples: int
) -> dict[str, Estimate]:
    """Return harm by the oracle and by the judge of the answer with the highest reward of N.

    ``kept_LABEL`` is the share of prompts of whose whole pool that answer is what the oracle calls
    so; of equal rewards each counts in part.

    Args:
        pool: The answers to each prompt, all with a ``reward``: it alone decides what is kept.
        sizes: Values of N.
        num_resamples: Of each interval.
    """
    items = [answers[0].item for answers in pool]
    measured: Mapping[str, Callable[[Answer], float | None]] = {
        "harm_best_of": lambda answer: answer.harm,
        "p_harm_best_of": lambda answer: answer.judge,
    }
    curves = {}
    for name, value in measured.items():
        scores = [[value(answer) for answer in answers] for answers in pool]
        known = [[s for s in of_prompt if s is not None] for of_prompt in scores]
        if any(len(some) < len(of_prompt) for some, of_prompt in zip(known, scores, strict=True)):
            continue
        for n in sizes:
            kept = [
                best_of_n_expectation([_reward(a) for a in answers], of_prompt, n)
                for answers, of_prompt in zip(pool, known, strict=True)
            ]
            curves[f"{name}_{n}"] = mean_estimate(kept, items=items, num_resamples=num_resamples)
    if all(answer.label is not None for answers in pool for answer in answers):
        for label, _ in ORACLE_LABELS:
            kept = [
                best_of_n_expectation(
                    [_reward(a) for a in answers], [a.label == label for a in answers], len(answers)
                )
                for answers in pool
            ]
            estimate = mean_estimate(kept, items=items, num_resamples=num_resamples)
            curves[f"{KEPT}{label}"] = estimate
    return curves


def _reward(answer: Answer) -> float:
    assert answer.reward is not None
    return answer.reward
