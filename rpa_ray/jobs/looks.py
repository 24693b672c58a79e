"""Looks at the policy during an attack, and best-of-N, which looks without an attack."""

import time
from dataclasses import asdict, replace
from typing import Any

from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.best_of_n import best_of_n_curves
from rpa_ray.evaluation.looks import is_looked_at, look_of, looks_of
from rpa_ray.evaluation.measure import read_answers
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.jobs.attack_batches import attack_pairs
from rpa_ray.jobs.instruments import (
    EVALUATION_SEED,
    oracle_of,
    restricted_prompts,
    sampled_answers,
    text_scorers,
)
from rpa_ray.run_folder.files import read_lines
from rpa_ray.run_folder.names import METRICS
from rpa_ray.types import Metrics, Prompt

POOL_ROUNDS_AT_ONCE = 8
"""Answers to each prompt that are sampled in one call for best-of-N."""


class Looks:
    """Looks at the policy during an attack, and what was said of each: to go on, or to end."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._prompts = restricted_prompts(assembly)[
            : assembly.settings.evaluation.num_look_prompts
        ]
        self._truth, self._scorers = oracle_of(assembly), text_scorers(assembly)
        self._has_news = True
        self._is_stopped = False

    def look(self, step: int) -> Metrics:
        """Return how harmful the policy's answers are after some steps of an attack.

        The answers are sampled with the seeds of the evaluation: the same at every look, for the
        looks to differ by the policy alone. A collective over the ranks.
        """
        assembly, evaluation = self._assembly, self._assembly.settings.evaluation
        num, evenly = evaluation.num_looks, evaluation.looks_evenly
        if not is_looked_at(step, assembly.num_steps, num, evenly=evenly):
            return {}
        started = time.perf_counter()
        assembly.push()
        completions = sampled_answers(assembly, self._prompts, greedy=False)
        answers = read_answers(
            self._scorers, self._truth, Decoding.SAMPLED, completions, fluency_limit=float("inf")
        )
        found = look_of(
            answers, cost_limit=evaluation.cost_limit, num_resamples=evaluation.num_resamples
        )
        self._has_news = True
        return {**found, "time/look_s": time.perf_counter() - started}

    def is_stopped(self) -> bool:
        """Return whether the attack ends at its last look, which is asked once it is in the log.

        A collective over the ranks after a look, and once before the first step: an attack that
        goes on from a checkpoint may have been about to end.
        """
        if self._has_news:
            self._has_news = False
            process, cell = self._assembly.process, self._assembly.cell
            looks = looks_of(None, read_lines(cell.folder / METRICS))
            is_told = process.ranks.is_main and process.is_stopped(cell.name, looks)
            self._is_stopped = process.ranks.broadcast(is_told)
        return self._is_stopped


def measure_best_of_n(assembly: Assembly) -> tuple[dict[str, dict[str, Any]], list[Answer]]:
    """Return how harmful the answer is that the reward model keeps out of N, and the pool.

    All come from one pool of sampled answers to prompts of the attack, those that PPO would draw
    first, so that the curve over N has no sampling noise of its own. A collective over the ranks.
    """
    attack, process, settings = assembly.attack, assembly.process, assembly.settings
    assert isinstance(attack, BestOfN)
    pairs = attack_pairs(assembly, attack.config.num_prompts)
    prompts = assembly.prompts([p.prompt for p in pairs], [p.id for p in pairs])
    pool_size = attack.config.pool_size
    process.progress.start(assembly.cell.name, pool_size)
    pool: list[list[Answer]] = [[] for _ in prompts]
    truth, scorers = oracle_of(assembly), text_scorers(assembly)
    for i in range(0, pool_size, POOL_ROUNDS_AT_ONCE):
        num_rounds = min(POOL_ROUNDS_AT_ONCE, pool_size - i)
        asked: list[Prompt] = [prompt for prompt in prompts for _ in range(num_rounds)]
        completions = sampled_answers(assembly, asked, greedy=False, seed=EVALUATION_SEED + 1 + i)
        answers = read_answers(
            scorers, truth, Decoding.POOL, completions, fluency_limit=float("inf")
        )
        for place, answer in enumerate(answers):
            pool[place // num_rounds].append(replace(answer, sample=i + answer.sample))
        done = i + num_rounds
        process.progress.advance(assembly.cell.name, done - 1, f"{done} answers a prompt")
    curves = best_of_n_curves(pool, attack.sizes, num_resamples=settings.evaluation.num_resamples)
    return {name: asdict(estimate) for name, estimate in curves.items()}, [
        a for p in pool for a in p
    ]
