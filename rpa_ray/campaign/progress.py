"""Progress on the terminal: what is waited for, one line or bar a job, and one over all cells."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

from rpa_ray.campaign.job_state import JobState
from rpa_ray.plan.cost import minutes
from rpa_ray.recipes.to_make import Stage
from rpa_ray.terminal import printable, say

PLAIN_LINE_EVERY_S = 20.0
MAX_ENDED_BARS = 20
"""So many of the jobs that have ended, the last, keep their bar."""
_ALL = "all cells"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What is known of a job before it begins."""

    label: str
    """What tells it from its neighbours."""
    is_cell: bool
    seconds: float | None
    """About how long it takes; None where that is not estimated."""


class ProgressView:
    """Shows job states; on a plain output it prints lines instead of bars."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._told_stage: dict[str, str] = {}
        self._told_end: set[str] = set()
        self._expected: dict[str, Expected] = {}
        self._num_at_once = 1

    def __enter__(self) -> "ProgressView":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def expect(self, jobs: Mapping[str, Expected], num_at_once: int) -> None:
        """Take what will be done, by the name of the job, and how many jobs side by side."""
        self._expected = dict(jobs)
        self._num_at_once = num_at_once

    def say(self, text: str) -> None:
        """Print one line, above the bars where there are any."""
        say(self._console, text)

    def show(self, jobs: Sequence[JobState]) -> None:
        """Show the states of all jobs that have begun."""
        if self._console.is_terminal:
            self._show_bars(jobs)
        else:
            self._print_lines(jobs)

    def overall(self, jobs: Sequence[JobState]) -> str:
        """Return how many cells are done, running and failed, and how long the rest takes."""
        states = {job.name: job for job in jobs}
        cells = [states.get(name) for name, job in self._expected.items() if job.is_cell]
        ended = [cell for cell in cells if cell is not None and cell.status]
        running = [cell for cell in cells if cell is not None and not cell.status]
        num_failed = sum(cell.status == "failed" for cell in ended)
        left = self._seconds_left(states)
        return (
            f"{len(ended) - num_failed} of {len(cells)} cells done, {len(running)} running, "
            f"{num_failed} failed" + (f", about {minutes(left)} left" if left is not None else "")
        )

    def _seconds_left(self, states: Mapping[str, JobState]) -> float | None:
        """Return about how long all jobs still take; None where one of them is not estimated.

        Estimates are corrected by how long the jobs took that have ended; all take no less than
        each that runs takes for the steps that it has left.
        """
        now = time.time()
        took = expected_s = left = longest = 0.0
        for name, job in self._expected.items():
            state = states.get(name)
            if job.seconds is None:
                return None
            if state is not None and state.status:
                took += state.ended - state.started
                expected_s += job.seconds
            elif state is None:
                left += job.seconds
            else:
                left += max(job.seconds - (now - state.started), 0.0)
                longest = max(longest, _steps_left_s(state, now))
        pace = took / expected_s if expected_s else 1.0
        return max(left * pace / self._num_at_once, longest)

    def _label(self, name: str) -> str:
        label = self._expected[name].label if name in self._expected else name
        return _one_line(label)

    def _show_bars(self, jobs: Sequence[JobState]) -> None:
        shown = _with_bar(jobs)
        for name in self._tasks.keys() - {job.name for job in shown} - {_ALL}:
            self._progress.remove_task(self._tasks.pop(name))
        for job in shown:
            if job.name not in self._tasks:
                self._tasks[job.name] = self._progress.add_task(
                    self._label(job.name), total=job.num_steps or None, note=""
                )
            self._progress.update(
                self._tasks[job.name],
                # One that only measures has no steps: it is whole once it has ended.
                total=job.num_steps or (1 if job.status else None),
                completed=job.num_done if job.num_steps else bool(job.status),
                note=_one_line(_broke_off(job) or job.status or f"{job.stage}  {job.note}".strip()),
            )
        num_cells = sum(job.is_cell for job in self._expected.values())
        if not num_cells:
            return
        if _ALL not in self._tasks:
            self._tasks[_ALL] = self._progress.add_task(_ALL, total=num_cells, note="")
        names = {name for name, job in self._expected.items() if job.is_cell}
        num_ended = sum(bool(job.status) for job in jobs if job.name in names)
        self._progress.update(self._tasks[_ALL], completed=num_ended, note=self.overall(jobs))

    def _print_lines(self, jobs: Sequence[JobState]) -> None:
        now = time.time()
        has_ended, told = False, set()
        for job in jobs:
            if job.status and job.name not in self._told_end:
                self._told_end.add(job.name)
                has_ended = True
                self.say(f"{self._label(job.name)}: {_ending(job)}")
            elif job.stage and self._told_stage.get(job.name) != job.stage:
                self._told_stage[job.name] = job.stage
                told.add(job.name)
                self.say(f"{self._label(job.name)}: {job.stage}{_steps(job)}{_before(job)}")
        running = [job for job in jobs if not job.status]
        is_due = now - self._last_line > PLAIN_LINE_EVERY_S
        if is_due:
            for job in running:
                if job.name in told or not _line(job):
                    continue
                self.say(f"{self._label(job.name)}: {_line(job)}{_time_left(job, now)}")
        if (is_due and running) or has_ended:
            self._last_line = now
            if any(job.is_cell for job in self._expected.values()):
                self.say(f"{_ALL}: {self.overall(jobs)}")


def _with_bar(jobs: Sequence[JobState]) -> list[JobState]:
    """Return the jobs that have a bar: those that run, and the last that ended."""
    ended = sorted((job for job in jobs if job.status), key=lambda job: job.ended)
    gone = {job.name for job in ended[:-MAX_ENDED_BARS]}
    return [job for job in jobs if job.name not in gone]


def _one_line(text: str) -> str:
    """Return text that fits into a bar or a line."""
    return printable(text.replace("\t", " ").replace("\n", " "))


def _line(job: JobState) -> str:
    parts = [job.stage, f"{job.num_done}/{job.num_steps}" if job.num_steps else "", job.note]
    return " ".join(part for part in parts if part)


def _steps(job: JobState) -> str:
    """Return where a stage begins that has steps; the others have none of their own."""
    is_training = job.num_steps and job.stage == Stage.ATTACK
    return f", step {job.num_done} of {job.num_steps}" if is_training else ""


def _before(job: JobState) -> str:
    if not job.stages_s:
        return ""
    stage, seconds = list(job.stages_s.items())[-1]
    return f" ({stage} took {seconds:.0f} s)"


def _broke_off(job: JobState) -> str:
    """Return how a job broke off, and why; nothing where it did not."""
    if job.status in ("", "ok"):
        return ""
    how = job.status.replace("_", " ")
    return f"{how}: {job.note}" if job.note else how


def _ending(job: JobState) -> str:
    if broken := _broke_off(job):
        return broken
    parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in job.stages_s.items())
    note = f" {job.note}" if job.note else ""
    return f"done, {parts}{note}" if parts else f"done{note}"


def _time_left(job: JobState, now: float) -> str:
    seconds = _steps_left_s(job, now)
    return f" ({minutes(seconds)} left)" if seconds else ""


def _steps_left_s(job: JobState, now: float) -> float:
    """Return how long the steps that are left take at the pace so far; 0 before the first."""
    if job.num_done == 0 or job.num_done >= job.num_steps:
        return 0.0
    since = job.stage_started or job.started
    return (now - since) / (job.num_done - job.first_step) * (job.num_steps - job.num_done)
