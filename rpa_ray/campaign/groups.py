"""Groups of ranks that work through one queue side by side, and are started again when they die.

    start a group -> it takes jobs until none is left -> (died: its job goes back) -> start ...

Ray Train could restart a group itself, but only with the jobs it began with, and it could not start
a fresh one for each job, which ZeRO 3 needs.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from rpa_ray.campaign.queue import MAX_LOSSES_IN_PLACE, LostJob, ask
from rpa_ray.campaign.ranks import Work, record_failure, run_work, silence_limit_s
from rpa_ray.campaign.room import Room
from rpa_ray.data.errors import last_line
from rpa_ray.recipes.to_make import Cell

STORAGE_PREFIX = ".train-"
_POLL_S = 0.5


class GroupFailed(RuntimeError):
    """Ranks could not be kept at work; they hold no job, which others can do."""


class Background(Protocol):
    """What works beside others, in a thread of the driver."""

    error: Exception | None
    """What ended it early."""

    def is_alive(self) -> bool:
        """Return whether it is still at work."""
        ...

    def stop(self) -> None:
        """Have it begin nothing more."""
        ...


class RankGroup:
    """One group of ranks after the other, started from a thread of the driver."""

    def __init__(self, work: Work, room: Room, storage: Path, told: Callable[[str], None]) -> None:
        """Take the work; ``told`` hears of every group that died, from another thread."""
        self._work = work
        self._room = room
        self._storage = storage
        self._told = told
        self._ended_rank: Any = None
        self._has_left = False
        self._stopped = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"ranks-{work.group}", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether it is still at work."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Start no group after the one that is at work, which ends with the cluster."""
        self._stopped.set()

    def make_way(self) -> None:
        """Have the ranks at work end: they hold what other groups wait for.

        The group then ends too, unless another has left by then.
        """
        first_rank = self._ask("first_rank", self._work.group)
        if first_rank is not None and first_rank != self._ended_rank:
            self._ended_rank = first_rank
            ray.kill(first_rank)

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._work_through()
        except Exception as error:
            self.error = error
        if not self._stopped.is_set():
            self._make_room()

    def _make_room(self) -> None:
        """Let others have what the workers of this group reserve."""
        if not self._has_left:
            self._room.leave()
        if self._work.pools is not None:  # those beside ranks end with them
            self._work.pools.shut_down()

    def _work_through(self) -> None:
        group, num_early_losses = self._work.group, 0
        nodes = self._room.nodes()
        while not self._stopped.is_set() and self._ask("num_waiting"):
            with TemporaryDirectory(prefix=STORAGE_PREFIX, dir=self._storage) as storage:
                failure = run_work(self._work, storage=Path(storage))
            if not failure or self._stopped.is_set():
                continue
            gone, nodes = sorted(nodes - (left := self._room.look())), left
            if gone:
                failure = f"lost node {', '.join(gone)}: {failure}"
            why = failure.partition("\n")[0]
            lost: LostJob | None = self._ask("lose", group, why, counts=not gone)
            if lost is not None:
                num_early_losses = 0
                self._take_note(lost, failure)
            else:
                num_early_losses += not gone
                self._told(f"ranks died before they took a job: {failure}")
            if num_early_losses >= MAX_LOSSES_IN_PLACE:
                raise GroupFailed(failure)
            if gone and self._room.leave_in_excess():
                self._has_left = True
                self._told(f"group {group} ends: the nodes that are left have no room for it")
                raise GroupFailed(failure)

    def _take_note(self, lost: LostJob, failure: str) -> None:
        if lost.silent_s >= (limit_s := silence_limit_s(self._work.cluster)):
            failure = (
                f"nothing was heard of it for {limit_s:g} s, and it was ended; the stacks are in "
                "the log of its worker. Raise cluster.timeout_s where one step takes so long\n"
                + failure
            )
        if not lost.given_up:
            self._told(f"{lost.name} goes on from its last checkpoint, its ranks died: {failure}")
            return
        self._told(f"{lost.name} is given up: {failure}")
        for name in (lost.name, *lost.needed_by):
            job = self._work.jobs[name]
            if isinstance(job, Cell):
                what = "the cell" if name == lost.name else f"{lost.name}, which the cell needs,"
                record_failure(job, f"{what} was given up: {failure}", failure)

    def _ask(self, method: str, *args: object, **options: object) -> Any:
        return ask(self._work.queue, method, *args, **options)


def make_room(groups: Sequence[RankGroup], room: Room) -> None:
    """Have as many groups end as the nodes that are left have no room for, the last ones.

    Else each might hold what others wait for: a group its ranks, but none of them an engine.
    """
    at_work = [group for group in groups if group.is_alive()]
    for group in at_work[len(at_work) - min(room.num_excess(), len(at_work)) :]:
        group.make_way()


def work_through(
    groups: Sequence[Background],
    look: Callable[[], None],
    num_left: Callable[[], int],
    beside: Sequence[Background] = (),
) -> str:
    """Have a look now and then until all have ended; return what went wrong, if anything.

    Groups whose ranks could not be kept at work leave the jobs to the others. Any other failure
    ends all, and so does a cluster that answers no longer: what they have saved is found by the
    next run.

    Args:
        groups: What does the jobs.
        look: Is called every half second.
        num_left: Returns how many jobs nobody has taken.
        beside: What releases the jobs.
    """
    try:
        while _is_at_work(groups, num_left, beside):
            look()
            time.sleep(_POLL_S)
        look()
        if not num_left():  # the others have done them
            groups = [one for one in groups if not isinstance(one.error, GroupFailed)]
        lost = []
    except RayError as error:
        lost = [f"the cluster answers no longer: {last_line(error)}"]
    return "\n".join([str(one.error) for one in (*groups, *beside) if one.error] + lost)


def _is_at_work(
    groups: Sequence[Background], num_left: Callable[[], int], beside: Sequence[Background]
) -> bool:
    errors = [one.error for one in groups if one.error]
    if any(one.error for one in beside) or any(not isinstance(e, GroupFailed) for e in errors):
        return False
    if any(one.is_alive() for one in groups):
        return True
    is_stuck = bool(errors) and num_left() > 0
    return not is_stuck and any(one.is_alive() for one in beside)
