"""How fast a training ran and what its steps waited for, from the lines of ``metrics.jsonl``."""

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = {
    "rollout_frac": "time/rollout_s",
    "score_frac": "time/score_s",
    "learner_frac": "time/learner_s",
    "sync_frac": "time/sync_s",
}
"""Shares of the time of a step, and the seconds in the log that they are made of."""


def throughput(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return rates and shares of step time; empty when no step was timed.

    Everything is a sum over steps divided by the seconds of the same steps, so slow steps weigh
    what they cost. The first line is left out where there are more: it compiles, allocates and
    fills caches. The first step of a process that resumed the run is counted.

    - ``num_steps``: Steps counted.
    - ``samples_per_s``: Attack samples (prompts or pairs), all ranks together.
    - ``tokens_per_s``: Tokens that the learner read, prompts included, all ranks together.
    - ``rollout_tokens_per_s``: Tokens sampled, per second of whole steps; divided by
      ``rollout_frac`` it is the speed of the engines while they generate.
    - ``rollout_frac``, ``score_frac``, ``learner_frac``, ``sync_frac``, ``rest_frac``: Shares of
      the time; they sum to 1. ``score_frac`` is the wait for scores after the log-probabilities
      are done, and these log-probabilities are in the rest. A part that a step lacks took no time.

    Time between steps (checkpoints, evaluation) is in none of them. A rate of tokens is over the
    steps that logged it, and missing where none did.

    Args:
        lines: One mapping a step in the order of the steps; null stands for a number that was
            not finite.
    """
    timed = [line for line in lines if line.get("time/step_s")]
    if not timed:
        return {}
    counted = timed[1:] or timed
    samples_before = timed[0].get("samples", 0) if len(timed) > 1 else 0
    seconds = _total(counted, "time/step_s")
    found: dict[str, float] = {"num_steps": float(len(counted))}
    if "samples" in timed[-1]:
        found["samples_per_s"] = (timed[-1]["samples"] - samples_before) / seconds
    for rate, key in (
        ("tokens_per_s", "train/num_tokens"),
        ("rollout_tokens_per_s", "rollout/num_tokens"),
    ):
        logged = [line for line in counted if line.get(key) is not None]
        if logged:
            found[rate] = _total(logged, key) / _total(logged, "time/step_s")
    parts = {name: _total(counted, key) for name, key in PARTS.items()}
    # The parts are means over ranks and the step is timed on the first: they may exceed it a bit.
    whole = max(seconds, sum(parts.values()))
    shares = {name: part / whole for name, part in parts.items()}
    return found | shares | {"rest_frac": max(0.0, 1.0 - sum(shares.values()))}


def _total(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(line.get(key) or 0.0 for line in lines))
