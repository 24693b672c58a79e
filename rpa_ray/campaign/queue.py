"""The jobs of a campaign: who takes the next, how far each is, and which lost its ranks."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from rpa_ray.campaign.job_state import JobState
from rpa_ray.campaign.watchdog import Watchdog

if TYPE_CHECKING:
    from rpa_ray.recipes.to_make import Job

MAX_LOSSES_IN_PLACE = 3
"""How often a job may lose its ranks without getting any further: the last time it is given up."""
ASK_AGAIN = ""
"""In place of a job's name: none can be begun yet."""
_TIMEOUT_S = 60.0
_JUDGED_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class LostJob:
    """A job whose ranks died."""

    name: str
    given_up: bool
    """True where it was lost too often in the same place to be tried again, or for good."""
    needed_by: tuple[str, ...] = ()
    """Jobs that cannot be done without one that is given up."""
    silent_s: float = 0.0
    """How long nothing had been heard of it."""


class JobQueue:
    """Hands out jobs in order, each after those it needs; an actor that outlives the ranks."""

    def __init__(
        self,
        jobs: Mapping[str, Collection[str]],
        held: Collection[str] = frozenset(),
        *,
        is_open: bool = False,
        is_judged: bool = False,
    ) -> None:
        """Take the name of every job with those of the jobs that must be done before it.

        Those in ``held`` are not handed out before they are released. An open queue gets more jobs
        until it is closed. Of a judged one it is said at each look whether the job goes on.
        """
        self._needs = {name: set(needs) for name, needs in jobs.items()}
        self._waiting = list(jobs)
        self._held = set(held)
        self._is_open = is_open
        self._is_judged = is_judged
        self._added: dict[str, Job] = {}
        self._looks: dict[str, list[dict[str, float]]] = {}
        self._num_passed: dict[str, int] = {}
        self._stopped: set[str] = set()
        self._unjudged: set[str] = set()
        self._taken: dict[int, str] = {}
        self._groups: set[int] = set()
        self._first_ranks: dict[int, ActorHandle[Any]] = {}
        self._states: dict[str, JobState] = {}
        self._furthest: dict[str, int] = {}
        self._num_losses: dict[str, int] = {}
        self._hopeless: set[str] = set()

    def take(self, group: int) -> str | None:
        """Return the next job for a group of ranks, which is done with the one before.

        ``ASK_AGAIN`` where those that are left are held, or need others that are still being done;
        None where no job is left.
        """
        self._groups.add(group)
        self.finish(group)
        for name in self._waiting:
            if not self._needs[name] and name not in self._held:
                self._waiting.remove(name)
                self._taken[group] = name
                return name
        return ASK_AGAIN if self.num_waiting() else None

    def join(self, group: int, first_rank: ActorHandle[Any]) -> None:
        """Record the first rank of a group that has come up."""
        self._first_ranks[group] = first_rank

    def first_rank(self, group: int) -> ActorHandle[Any] | None:
        """Return the first rank of a group, of the last that came up; None before."""
        return self._first_ranks.get(group)

    def finish(self, group: int) -> None:
        """Record that a group is done with its job."""
        done = self._taken.pop(group, None)
        for needs in self._needs.values():
            needs -= {done}

    def release(self, names: Collection[str]) -> None:
        """Let jobs be handed out that were held; no other is minded."""
        self._held -= set(names)

    def add(
        self,
        jobs: Mapping[str, "Job"],
        needs: Mapping[str, Collection[str]],
        held: Collection[str],
    ) -> None:
        """Take more jobs, with those that must be done before each; hold some."""
        self._held |= set(held)
        for name, job in jobs.items():
            unfinished = {*self._waiting, *self._taken.values()}
            self._needs[name] = set(needs[name]) & unfinished
            self._added[name] = job
            self._waiting.append(name)

    def added(self, name: str) -> "Job":
        """Return a job that was not there from the start."""
        return self._added[name]

    def close(self) -> None:
        """Get no more jobs."""
        self._is_open = False

    def judge(self, name: str, looks: Sequence[Mapping[str, float]]) -> bool | None:
        """Take all looks at a job so far; return whether it ends there, None if not said yet."""
        self._looks[name] = [dict(look) for look in looks]
        if name in self._states:
            self._states[name].heard = time.time()
        if not self._is_judged or name in self._unjudged:
            return False
        if name in self._stopped:
            return True
        return False if self._num_passed.get(name, 0) >= len(looks) else None

    def looks(self, name: str) -> list[dict[str, float]]:
        """Return the looks at a job so far, in order."""
        return self._looks.get(name, [])

    def go_on(self, name: str, num_looks: int) -> None:
        """Let a job go on after so many looks."""
        self._num_passed[name] = num_looks

    def stop(self, name: str) -> None:
        """Have a job end at its next look, if there is one."""
        self._stopped.add(name)

    def judge_no_more(self, name: str) -> None:
        """Let a job run to its end."""
        self._unjudged.add(name)

    def num_waiting(self) -> int:
        """Return how many jobs nobody has taken; of an open queue one is still to come."""
        return len(self._waiting) + self._is_open

    def forbid_retry(self, name: str) -> None:
        """Record that other ranks would fail at a job as these did: it is given up once lost."""
        self._hopeless.add(name)

    def lose(self, group: int, why: str = "", *, counts: bool = True) -> LostJob | None:
        """Put the job of a group that died back in front; None where it had none.

        One that is given up has ended, by what killed its ranks, and so have those that need it.
        What counts is no loss of a node.
        """
        name = self._taken.pop(group, None)
        if name is None:
            return None
        num_done, silent_s = 0, 0.0
        if name in self._states:
            num_done = self._states[name].num_done
            silent_s = time.time() - self._states[name].heard
            self._states[name].note = "lost its ranks; starting others"
        if num_done > self._furthest.get(name, -1):
            self._furthest[name], self._num_losses[name] = num_done, 0
        self._num_losses[name] += counts
        if name not in self._hopeless and self._num_losses[name] < MAX_LOSSES_IN_PLACE:
            self._waiting.insert(0, name)
            return LostJob(name=name, given_up=False, silent_s=silent_s)
        self.end(name, "failed", why)
        needed_by = self._needing(name)
        for other in needed_by:
            self._waiting.remove(other)
            self.end(other, "failed", f"{name} could not be made: {why}")
        return LostJob(name=name, given_up=True, needed_by=needed_by, silent_s=silent_s)

    def _needing(self, name: str) -> tuple[str, ...]:
        """Return the jobs that need one, or one that needs it; all of them wait."""
        found, size = {name}, 0
        while len(found) > size:
            size = len(found)
            found |= {other for other in self._waiting if self._needs[other] & found}
        return tuple(other for other in self._waiting if other in found - {name})

    def groups(self) -> list[int]:
        """Return the groups of ranks that are up: those that have asked for a job."""
        return sorted(self._groups)

    def begin(self, job: str) -> None:
        """Record that a job is taken up, by its first ranks or after the loss of others."""
        now = time.time()
        self._states[job] = JobState(name=job, started=now, heard=now)

    def start(self, job: str, num_steps: int) -> None:
        """Record how many steps a job has."""
        state = self._states[job]
        state.num_steps, state.heard = num_steps, time.time()

    def enter(self, job: str, stage: str) -> None:
        """Record that a job comes to a stage."""
        self._states[job].enter(stage)

    def end(self, job: str, status: str, why: str = "") -> None:
        """Record how a job ended, and in one line why it broke off if it did."""
        state = self._states.setdefault(job, JobState(name=job, started=time.time()))
        state.enter("")
        state.status, state.ended = status, time.time()
        state.note = state.note if status == "ok" else why

    def advance(self, job: str, step: int, note: str) -> None:
        """Record that a step is done."""
        state = self._states[job]
        if state.num_done == 0:
            state.first_step = step
        state.num_done, state.note, state.heard = step + 1, note, time.time()

    def jobs(self) -> list[JobState]:
        """Return every job that has begun."""
        return list(self._states.values())


class QueueProgress:
    """Tells the queue how far a job is, without waiting; only the main rank speaks.

    On every rank it is a sign of life.
    """

    def __init__(
        self, queue: "ActorHandle[JobQueue]", *, enabled: bool, watchdog: Watchdog
    ) -> None:
        self._queue = queue
        self._enabled = enabled
        self._watchdog = watchdog

    def _tell(self, method: str, *args: object) -> None:
        self._watchdog.heard()
        if self._enabled:
            getattr(self._queue, method).remote(*args)

    def is_stopped(self, job: str, looks: Sequence[Mapping[str, float]]) -> bool:
        """Return whether a job ends at its last look; waits until that is said."""
        while (verdict := ask(self._queue, "judge", job, looks)) is None:
            self._watchdog.heard()
            time.sleep(_JUDGED_EVERY_S)
        return bool(verdict)

    def begin(self, job: str) -> None:
        """A job is taken up."""
        self._tell("begin", job)

    def start(self, job: str, num_steps: int) -> None:
        """A job has so many steps."""
        self._tell("start", job, num_steps)

    def enter(self, job: str, stage: str) -> None:
        """A job comes to a stage."""
        self._tell("enter", job, stage)

    def end(self, job: str, status: str, why: str = "") -> None:
        """A job has ended, and in one line why it broke off if it did."""
        self._tell("end", job, status, why)

    def advance(self, job: str, step: int, note: str) -> None:
        """A step of a job is done."""
        self._tell("advance", job, step, note)


def ask(queue: "ActorHandle[JobQueue]", method: str, *args: object, **options: object) -> Any:
    """Return the answer of a method of the queue."""
    return ray.get(getattr(queue, method).remote(*args, **options), timeout=_TIMEOUT_S)
