"""Compare rollouts that every learner rank asks for alone with one call per engine for all ranks.

    python benchmarks/shared_calls.py [--repeats 5]

The embedded chat model in float32 on real engines, one thread each; threads stand for the ranks.
An engine answers one call at a time, so that the calls of ranks that ask alone stand in line. Both
ways take turns in one run; their answers, ids and log-probabilities, have to be equal to the bit,
or exit status 1.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import cast

import torch

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.pools import RolloutPool, create_rollout_pool
from rpa_ray.actors.rollout import Generated, Sampling
from rpa_ray.cluster.session import ray_session
from rpa_ray.learner.modules import load_policy
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync
from rpa_ray.world.shipped import SHIPPED

SHAPES = ((2, 1), (4, 2))
"""Ranks and engines."""
BATCHES = (8, 64)
VERSION = 1
Answers = list[Generated]


def shares(num: int, parts: int) -> list[tuple[int, int]]:
    """Return where contiguous parts of a list begin and end."""
    return list(pairwise(num * part // parts for part in range(parts + 1)))


def alone(
    pool: RolloutPool, prompts: list[list[int]], sampling: Sampling, num_ranks: int
) -> Answers:
    """Have every rank send its own part, split again, to all engines."""

    def of_rank(begin: int, end: int) -> Answers:
        calls = [
            (prompts[begin + a : begin + b], sampling, VERSION, begin + a)
            for a, b in shares(end - begin, len(pool))
        ]
        parts = cast(list[Answers], pool.call_each("generate", calls))
        return [one for part in parts for one in part]

    with ThreadPoolExecutor(num_ranks) as ranks:
        parts = ranks.map(lambda share: of_rank(*share), shares(len(prompts), num_ranks))
        return [one for part in parts for one in part]


def timed(call: Callable[[], Answers]) -> tuple[float, Answers]:
    """Return the seconds of a call and its answers."""
    begun = time.perf_counter()
    answers = call()
    return time.perf_counter() - begun, answers


def compare(pool: RolloutPool, prompts: list[list[int]], num_ranks: int, repeats: int) -> bool:
    """Print a row; return whether both ways gave the same answers."""
    took: dict[str, list[float]] = {"alone": [], "once": []}
    is_equal = True
    for repeat in range(repeats + 1):
        sampling = Sampling(max_new_tokens=32, seed=repeat, eos_token_id=2)
        ways: dict[str, Callable[[], Answers]] = {
            "alone": partial(alone, pool, prompts, sampling, num_ranks),
            "once": partial(pool.generate, prompts, sampling, VERSION),
        }
        answers = {}
        for way in sorted(ways, reverse=repeat % 2 == 1):
            seconds, answers[way] = timed(ways[way])
            if repeat:  # the first sets up
                took[way].append(seconds)
        is_equal &= answers["alone"] == answers["once"]
    ratios = sorted(a / o for a, o in zip(took["alone"], took["once"], strict=True))
    print(
        f"| {num_ranks} x {len(pool)} | {len(prompts)} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
        f"| {'equal' if is_equal else 'DIFFERENT'} |",
        flush=True,
    )
    return is_equal


def main() -> int:
    """Compare for every shape and batch; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    (folder,) = SHIPPED.glob("chat-*")
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 1024) for _ in range(20)] for _ in range(max(BATCHES))]
    print("| ranks x engines | batch | alone / once (lowest to highest) | answers |")
    print("| --- | --: | --: | --- |")
    is_equal = True
    for num_ranks, num_engines in SHAPES:
        with ray_session(None):
            pool = create_rollout_pool(num_engines, num_cpus=0.5)
            module = load_policy(folder, dtype=torch.float32)
            source = ShardedSource(module.served_parameters(), dtype=torch.float32)
            engine = EngineConfig(model_path=str(folder), max_model_len=128, dtype="float32")
            WeightSync(pool=pool, source=source, engine=engine, rank=0).push(VERSION)
            for batch in BATCHES:
                is_equal &= compare(pool, prompts[:batch], num_ranks, repeats)
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
