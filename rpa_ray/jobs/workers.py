"""The worker pools as all learner ranks use them together, through the loss of any worker.

    call -> ranks agree -> (lost: mend -> call again)

Every method is a collective: a rank that gave up alone would leave the others waiting for it. A
call is repeated with the same arguments and seeds, so a loss leaves no trace in the results.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rpa_ray.actors.errors import WorkerError
from rpa_ray.actors.pools import PendingScores, RolloutPool, ScorerPool
from rpa_ray.actors.rollout import Generated, Sampling
from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.learner.ranks import Ranks
from rpa_ray.weight_sync.agreement import any_rank_failed
from rpa_ray.weight_sync.sync import PushResult, WeightSync
from rpa_ray.weight_sync.verify import verify_served

MAX_ATTEMPTS = 5
"""Tries of one call; each may lose a worker."""

T = TypeVar("T")
Pairs = Sequence[tuple[str, str]]
logger = logging.getLogger(__name__)


class SharedWorkers:
    """Rollout engines that serve the policy of one experiment, and its scorers."""

    def __init__(
        self, *, ranks: Ranks, rollouts: RolloutPool, scorers: ScorerPool, sync: WeightSync
    ) -> None:
        self._ranks = ranks
        self._rollouts = rollouts
        self._scorers = scorers
        self._sync = sync
        # Every push has a version of its own, also among processes that were lost: an engine that
        # holds what one of them pushed is never taken for one that serves this policy.
        self._version = ranks.broadcast(secrets.randbits(32)) << 24

    def push(self) -> PushResult:
        """Serve the weights as they are now."""
        self._version += 1
        return self._sync.push(self._version)

    def push_verified(self, expected: Mapping[str, str]) -> None:
        """Serve the weights and check that every engine received those of the given digests.

        Raises:
            ServedWeightsError: An engine received other weights than were meant.
        """

        def serve() -> None:
            self._version += 1
            self._sync.push(self._version, record_digests=True)

        def check() -> None:
            if self._ranks.is_main:
                verify_served(pool=self._rollouts, expected=expected)

        serve()
        repeat_together(check, mend=serve)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated]:
        """Return one answer to each of this rank's prompts, by the weights as they are now.

        Each engine is called once for the prompts of all ranks: it answers one call at a time, and
        many prompts take it little longer than few. The weights must not have changed since the
        last push: they are pushed again where an engine was lost.
        """
        asked = self._ranks.gather(list(prompts))
        whole = [prompt for part in asked for prompt in part]
        answers = repeat_together(
            lambda: (
                self._rollouts.generate(whole, sampling, self._version)
                if self._ranks.is_main and whole
                else []
            ),
            mend=self.push,
        )
        return self._own_part(answers, asked)

    def load_scorer(self, name: str, spec: ScorerSpec) -> None:
        """Have a model for scoring ready under ``name``."""
        repeat_together(lambda: self._scorers.load(name, spec))

    def score_async(self, name: str, pairs: Pairs) -> Callable[[], list[float]]:
        """Start scoring this rank's pairs; both this and what it returns are collectives.

        Each scorer is called once for the pairs of all ranks. The returned call waits for the
        scores.
        """
        asked = self._ranks.gather(list(pairs))
        whole = [pair for part in asked for pair in part]

        def start() -> PendingScores | None:
            return self._scorers.score_async(name, whole) if self._ranks.is_main else None

        pending = start()

        def mend() -> None:
            nonlocal pending
            self._scorers.wait_until_up()
            pending = start()

        def wait() -> list[float]:
            scores = repeat_together(lambda: pending.result() if pending else [], mend=mend)
            return self._own_part(scores, asked)

        return wait

    def on_main(self, call: Callable[[], T]) -> T:
        """Return on every rank what the scorers answer to the main rank's ``call``."""
        result = repeat_together(
            lambda: call() if self._ranks.is_main else None, mend=self._scorers.wait_until_up
        )
        answer: T = self._ranks.broadcast(result)  # type: ignore[assignment]  # the main rank's
        return answer

    def _own_part(self, results: list[T], asked: Sequence[Sequence[object]]) -> list[T]:
        """Return the main rank's results for what this rank asked; those of all are in order."""
        whole = self._ranks.broadcast(results)
        start = sum(len(part) for part in asked[: self._ranks.rank])
        return whole[start : start + len(asked[self._ranks.rank])]


def repeat_together(call: Callable[[], T], mend: Callable[[], object] = lambda: None) -> T:
    """Return what ``call`` returns, trying again on all ranks after a worker of one was lost.

    Args:
        call: Asks workers for something; a rank that has nothing to ask passes one that does not.
        mend: Called on every rank before a repetition: has workers up again.

    Raises:
        WorkerError: On every rank, where it fails ``MAX_ATTEMPTS`` times.
    """
    failure = "nothing was tried"
    for attempt in range(MAX_ATTEMPTS):
        own: str | None = None
        result: T | None = None
        try:
            if attempt:
                mend()
            result = call()
        except WorkerError as error:
            own = str(error)
        if not any_rank_failed(own is not None):
            return result  # type: ignore[return-value]  # the call returned
        failure = own or "a worker that another rank had asked was lost"
        logger.warning("attempt %d of %d: %s", attempt + 1, MAX_ATTEMPTS, failure)
    raise WorkerError(
        f"workers must answer within {MAX_ATTEMPTS} attempts, got: {failure}. "
        "See the log of the worker that is named."
    )
