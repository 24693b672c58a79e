"""The only training loop: alignment, reward models, judges and attacks all run through it."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from rpa_ray.learner.step import Learner, SamplingFailed
from rpa_ray.run_folder.files import JsonLines
from rpa_ray.types import Metrics


class Source(Protocol):
    """Makes batch number ``step`` for this rank, with what was measured while making it."""

    def next_batch(self, step: int) -> tuple[Any, Metrics]:
        """Return the batch and its metrics."""
        ...


class Checkpoints(Protocol):
    """Lets a training go on after its processes died."""

    def restore(self) -> int:
        """Put everything back as it was; return the step to go on with."""
        ...

    def is_due(self) -> bool:
        """Return whether to save between these two steps."""
        ...

    def save(self, next_step: int, *, aside: bool = False) -> None:
        """Save; ``aside`` may be written while the next steps are taken."""
        ...


class TrainingFailed(RuntimeError):
    """The policy broke at a step; what was computed before it is kept."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


def train(
    source: Source,
    learner: Learner,
    *,
    num_steps: int,
    samples_per_step: int,
    log: JsonLines,
    checkpoints: Checkpoints,
    is_done: Callable[[], bool] = lambda: False,
    look: Callable[[int], Metrics] = lambda step: {},
    progress: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> int:
    """Train for ``num_steps`` batches, or until ``is_done()``; return how many were trained on.

    ``look`` looks at the model after a step; what it sees joins the step's line in the log, and
    the time that it takes is no part of the step's.

    Goes on where an earlier process was interrupted; at the end everything is saved once more.

    Raises:
        TrainingFailed: sampling or loss became non-finite; every earlier step is in the log.
    """
    first_step = step = checkpoints.restore()
    log.rewind(first_step)
    while step < num_steps and not is_done():
        started = time.perf_counter()
        try:
            batch, metrics = source.next_batch(step)
            made = time.perf_counter()
            metrics |= learner.step(batch)
            finished = time.perf_counter()
            metrics |= look(step)
        except SamplingFailed as error:
            raise TrainingFailed(step, error.reason) from error
        metrics |= {"time/learner_s": finished - made, "time/step_s": finished - started}
        samples = {"step": step, "samples": (step + 1) * samples_per_step}
        log.write(samples | metrics)
        progress(step, metrics)
        step += 1
        if step < num_steps and checkpoints.is_due():
            log.sync()
            checkpoints.save(step, aside=True)
    if first_step < step:
        log.sync()
        checkpoints.save(step)
    return step
