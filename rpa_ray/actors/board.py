"""Where ranks say how far they are, and the driver looks."""

import time
from dataclasses import dataclass

from ray.actor import ActorHandle


@dataclass(kw_only=True, slots=True)
class JobState:
    """How far one job is."""

    name: str
    num_steps: int
    num_done: int = 0
    note: str = ""
    started: float = 0.0


class Board:
    """Holds the state of every job that has begun, in order."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobState] = {}

    def start(self, job: str, num_steps: int) -> None:
        """Begin a job."""
        self._jobs[job] = JobState(name=job, num_steps=num_steps, started=time.time())

    def advance(self, job: str, step: int, note: str) -> None:
        """Record that a step is done."""
        state = self._jobs[job]
        state.num_done, state.note = step + 1, note

    def jobs(self) -> list[JobState]:
        """Return every job that has begun."""
        return list(self._jobs.values())


class BoardProgress:
    """Writes to a board from the main rank without waiting; other ranks are silent."""

    def __init__(self, board: "ActorHandle[Board]", *, enabled: bool) -> None:
        self._board = board
        self._enabled = enabled

    def start(self, job: str, num_steps: int) -> None:
        """A job begins."""
        if self._enabled:
            self._board.start.remote(job, num_steps)

    def advance(self, job: str, step: int, note: str) -> None:
        """A step of a job is done."""
        if self._enabled:
            self._board.advance.remote(job, step, note)
