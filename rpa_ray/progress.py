"""Progress on the terminal: one bar a job, with time left."""

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_LINE_EVERY_S = 20.0


class JobView(Protocol):
    """How far one job is."""

    @property
    def name(self) -> str:
        """Name on the terminal, one a job."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps of the whole job; 0 where it only measures."""
        ...

    @property
    def num_done(self) -> int:
        """Steps that are done."""
        ...

    @property
    def note(self) -> str:
        """What the last step found."""
        ...

    @property
    def started(self) -> float:
        """Seconds since the epoch."""
        ...


class ProgressView:
    """Shows job states; on a plain output it prints a line now and then instead of bars."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._reported: set[str] = set()

    def __enter__(self) -> "ProgressView":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, jobs: Sequence[JobView]) -> None:
        """Show the states of all jobs that have begun."""
        for job in jobs:
            if job.name not in self._tasks:
                self._tasks[job.name] = self._progress.add_task(
                    job.name, total=job.num_steps or None, note=""
                )
            self._progress.update(self._tasks[job.name], completed=job.num_done, note=job.note)
        if not self._console.is_terminal:
            self._print_lines(jobs)

    def _print_lines(self, jobs: Sequence[JobView]) -> None:
        now = time.time()
        for job in jobs:
            if job.num_done >= job.num_steps and job.name not in self._reported:
                self._reported.add(job.name)
                self._console.print(_line(job))
        running = [job for job in jobs if job.name not in self._reported]
        if running and now - self._last_line > PLAIN_LINE_EVERY_S:
            self._last_line = now
            for job in running:
                self._console.print(_line(job) + _time_left(job, now))


def _line(job: JobView) -> str:
    return f"{job.name}: {job.num_done}/{job.num_steps} {job.note}".rstrip()


def _time_left(job: JobView, now: float) -> str:
    """Return how long the steps that are left take at the pace so far; nothing before the first."""
    if job.num_done == 0:
        return ""
    seconds = (now - job.started) / job.num_done * (job.num_steps - job.num_done)
    return f" ({seconds:.0f} s left)"
