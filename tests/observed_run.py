"""A run of the command line as an outside observer sees it, kills it, and compares it.

Everything is read from the run folder and from the operating system.
"""

import json
import math
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Process, descendants, kill_when, process, ray_workers, raylet, still_there

RANK, ENGINE, SCORER = "RayTrainWorker", "RolloutWorker", "ScoringWorker"
NODE = "raylet"
TOLERANCE = 1e-5
_IDLE_S = 0.03
"""Between two parts of one push an engine is without a call for less than this."""
_STATE_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 120.0
_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What is killed, and in the middle of what."""

    victim: str
    """Class of the worker; empty for the driver, ``NODE`` for Ray's own process on the machine."""
    watched: str = ""
    """Class of the worker whose state decides; empty where any moment will do."""
    methods: tuple[str, ...] = ()
    """Methods that the watched worker is in; none: it waits for a call."""


KINDS = {
    "driver": Kind(victim=""),
    "ray node": Kind(victim=NODE),
    "rank": Kind(victim=RANK),
    "rank in a push": Kind(victim=RANK, watched=ENGINE, methods=("update_weights",)),
    "engine idle": Kind(victim=ENGINE, watched=ENGINE),
    "engine generating": Kind(victim=ENGINE, watched=ENGINE, methods=("generate",)),
    "engine receiving": Kind(victim=ENGINE, watched=ENGINE, methods=("update_weights",)),
    "scorer idle": Kind(victim=SCORER, watched=SCORER),
    "scorer scoring": Kind(victim=SCORER, watched=SCORER, methods=("score",)),
}


class ObservedRun:
    """One run in a process of its own, which the same command continues after a kill."""

    def __init__(
        self, command: Sequence[str], *, output: Path, environment: Mapping[str, str]
    ) -> None:
        """Take a command line that writes a single cell to ``output``."""
        self._command = list(command)
        self._environment = dict(environment)
        self.output = output
        self.log = output.with_name(f"{output.name}.log")
        self._known: dict[int, Process] = {}
        self.start()

    def start(self) -> None:
        """Start the command, which goes on where an earlier one of the same folder stopped."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self._driver = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def driver(self) -> int:
        """Process number of the command as it was started last."""
        return self._driver.pid

    def is_running(self) -> bool:
        """Return whether the command has not ended."""
        return self._driver.poll() is None

    def num_steps(self) -> int:
        """Return how many steps are recorded as done."""
        return sum(path.read_bytes().count(b"\n") for path in self.output.glob("*/metrics.jsonl"))

    def wait_until_begun(self) -> bool:
        """Wait until the run has taken its folder; False where it ends before."""
        while not any(self.output.glob("*/manifest.json")):
            if not self.is_running():
                return False
            time.sleep(_POLL_S)
        return True

    def wait_for_steps(self, num_steps: int, timeout_s: float = math.inf) -> bool:
        """Wait for a number of steps; False where the run ends or the time is over before."""
        deadline = time.monotonic() + timeout_s
        while self.num_steps() < num_steps:
            if not self.is_running() or time.monotonic() > deadline:
                return self.num_steps() >= num_steps
            time.sleep(_POLL_S)
        return True

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self._driver.wait()

    def end(self) -> None:
        """Have the command end, whatever it is at."""
        if not self.is_running():
            return
        self._remember()
        self._driver.terminate()
        try:
            self._driver.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()

    def kill(self, kind: str, rng: random.Random, within_s: float) -> float | None:
        """Kill a process of a kind, within ``within_s`` where its state does not matter.

        The same command is started again where it has died or dies of it.

        Returns:
            When it was killed, by ``time.monotonic``; None where there was no such process, or it
            was never seen in its state.
        """
        what = KINDS[kind]
        self._remember()
        if what.watched:
            return self._kill_in_state(what, rng)
        time.sleep(rng.uniform(0.0, within_s))
        victims = self._processes(what.victim)
        if not victims:
            return None
        os.kill(rng.choice(victims), signal.SIGKILL)
        killed = time.monotonic()
        if what.victim in ("", NODE):
            self._driver.wait(_STATE_TIMEOUT_S)
            self.start()
        return killed

    def _kill_in_state(self, what: Kind, rng: random.Random) -> float | None:
        victims, watched = self._processes(what.victim), self._processes(what.watched)
        if not victims or not watched:
            return None
        victim = rng.choice(victims)
        hit = kill_when(
            victim,
            victim if what.watched == what.victim else rng.choice(watched),
            [f"ray::{what.watched}.{m}" for m in what.methods] or [f"ray::{what.watched}"],
            for_s=0.0 if what.methods else _IDLE_S,
            timeout_s=_STATE_TIMEOUT_S,
        )
        return time.monotonic() if hit else None

    def _processes(self, victim: str) -> list[int]:
        if not victim:
            return [self.driver]
        if victim == NODE:
            node = raylet(self.driver)
            return [] if node is None else [node]
        return ray_workers(self.driver, victim)

    def left_over(self, timeout_s: float = 180.0) -> list[Process]:
        """Return the processes of killed drivers that have not ended within a time."""
        deadline = time.monotonic() + timeout_s
        while (left := still_there(list(self._known.values()))) and time.monotonic() < deadline:
            time.sleep(1.0)
        return left

    def _remember(self) -> None:
        own = process(self.driver)
        self._known |= {p.pid: p for p in [*descendants(self.driver), *([own] if own else [])]}


@dataclass(kw_only=True, slots=True)
class Comparison:
    """How far two runs are from each other."""

    num_values: int = 0
    num_not_equal: int = 0
    largest: float = 0.0
    """Largest absolute difference of two numbers."""
    differences: list[str] = field(default_factory=list)
    """Values that differ by more than the tolerance, and what only one of the runs has."""


def compare(one: Path, other: Path) -> Comparison:
    """Compare what two runs of one cell have recorded in their outputs, times left out."""
    (here,), (there,) = (list(output.glob("*/evaluation.json")) for output in (one, other))
    return compare_folders(here.parent, there.parent)


def compare_folders(one: Path, other: Path) -> Comparison:
    """Compare what two run folders have recorded, times left out."""
    found = Comparison()
    for here, there in zip(_recorded(one), _recorded(other), strict=True):
        for where, a, b in _pairs(here, there, ""):
            _count(found, where, a, b)
    return found


def _recorded(run: Path) -> Iterator[Any]:
    evaluation = json.loads((run / "evaluation.json").read_text())
    yield {k: v for k, v in evaluation.items() if k not in ("seconds", "times", "throughput")}
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        yield [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def _pairs(one: Any, other: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the leaves of two trees side by side; what one of them lacks is None there."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one | other:
            yield from _pairs(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list):
        yield f"{where}/length", len(one), len(other)
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _pairs(a, b, f"{where}/{i}")
    else:
        yield where, one, other


def _count(found: Comparison, where: str, a: Any, b: Any) -> None:
    found.num_values += 1
    if a == b:
        return
    found.num_not_equal += 1
    gap = abs(a - b) if isinstance(a, float) and isinstance(b, float) else math.inf
    found.largest = max(found.largest, gap)
    if gap > TOLERANCE:
        found.differences.append(f"{where}: {a!r} and {b!r}")


def file_sizes(folder: Path) -> list[int]:
    """Return the bytes of every file below a folder that does not vanish meanwhile."""
    sizes = []
    for parent, _, names in os.walk(folder):  # unlike rglob, it takes a vanished folder for empty
        for name in names:
            with suppress(FileNotFoundError):
                found = os.stat(os.path.join(parent, name))
                if stat.S_ISREG(found.st_mode):  # not a socket
                    sizes.append(found.st_size)
    return sizes


def command_line(*arguments: str) -> list[str]:
    """Return the command of this environment's rpa-ray."""
    return [str(Path(sys.executable).with_name("rpa-ray")), *arguments]
