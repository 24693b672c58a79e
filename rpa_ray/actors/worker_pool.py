"""Calls on a group of Ray actors: every wait has a limit, every failure names and quotes one."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from rpa_ray.actors.errors import StaleWeightsError, WorkerError
from rpa_ray.actors.status import WorkerStatus

_NUM_LAST_WORDS = 8
_RESTART_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One worker of a pool."""

    name: str
    handle: ActorHandle[Any]


class WorkerPool:
    """Calls on several workers at once, with a time limit and errors that name the worker."""

    def __init__(self, members: Sequence[Member], *, time_limit_s: float) -> None:
        if not members:
            raise ValueError("members must not be empty, got none. Ask for at least one worker.")
        self._members = tuple(members)
        self._time_limit_s = time_limit_s
        self._log_paths: dict[str, str | None] = {}

    def __len__(self) -> int:
        """Return the number of workers."""
        return len(self._members)

    def call_all(self, method: str, *args: object) -> list[object]:
        """Call a method of every worker with the same arguments; results in worker order."""
        return self.call_each(method, [args] * len(self._members))

    def call_each(self, method: str, args_of_worker: Sequence[Sequence[object]]) -> list[object]:
        """Call a method of every worker with its own arguments; results in worker order.

        Raises:
            WorkerError: If a worker died, raised or did not answer in time.
            ValueError: If a worker refused an argument.
        """
        refs = [
            getattr(member.handle, method).remote(*args)
            for member, args in zip(self._members, args_of_worker, strict=True)
        ]
        return self.collect(method, refs)

    def collect(self, method: str, refs: Sequence["ray.ObjectRef[object]"]) -> list[object]:
        """Wait for one result of each of the first ``len(refs)`` workers, in their order.

        The first failure ends the wait: the others may be waiting for the worker that was lost.
        """
        deadline = time.monotonic() + self._time_limit_s
        asked: dict[ray.ObjectRef[object], Member] = dict(zip(refs, self._members, strict=False))
        results: dict[ray.ObjectRef[object], object] = {}
        waiting = list(asked)
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            ready, waiting = ray.wait(waiting, timeout=left_s, fetch_local=False)
            ref = ready[0] if ready else waiting[0]
            left_s = max(0.0, deadline - time.monotonic())
            results[ref] = self._wait(asked[ref], method, ref, left_s)
        return [results[ref] for ref in asked]

    def coming_up(self) -> dict[str, "ray.ObjectRef[Any]"]:
        """Return, by worker, an answer that comes once it is up, after all it was told before."""
        return {member.name: member.handle.status.remote() for member in self._members}

    def shut_down(self) -> None:
        """Kill the workers."""
        for member in self._members:
            ray.kill(member.handle, no_restart=True)

    def restart_silent(self, limit_s: float) -> list[Member]:
        """Kill the workers that do not even say where they live, and return them.

        The next call finds fresh ones in their place.
        """
        members: dict[ray.ObjectRef[object], Member] = {
            member.handle.status.remote(): member for member in self._members
        }
        _, silent = ray.wait(list(members), num_returns=len(members), timeout=limit_s)
        for ref in silent:
            ray.kill(members[ref].handle, no_restart=False)
        return [members[ref] for ref in silent]

    def wait_until_up(self) -> None:
        """Wait for workers that are being restarted; those that stay silent are restarted.

        Raises:
            WorkerError: If one is not up within the time limit, or is dead for good.
        """
        deadline = time.monotonic() + self._time_limit_s
        if silent := self.restart_silent(self._time_limit_s):
            raise self._error(silent[0], "status", GetTimeoutError())
        for member in self._members:
            while not self._is_up(member):
                if time.monotonic() > deadline:
                    raise WorkerError(
                        f"{member.name} must be up within {self._time_limit_s:g} s, got a worker "
                        "that is still starting. Check the resources of the cluster."
                    )
                time.sleep(_RESTART_POLL_S)

    def _is_up(self, member: Member) -> bool:
        ref: ray.ObjectRef[object] = member.handle.status.remote()
        try:
            status = ray.get(ref, timeout=self._time_limit_s)
        except ActorUnavailableError:
            return False
        except (GetTimeoutError, RayActorError) as error:
            raise self._error(member, "status", error) from None
        assert isinstance(status, WorkerStatus)
        self._log_paths[member.name] = status.log_path if status.node == platform.node() else None
        return True

    def _wait(
        self, member: Member, method: str, ref: "ray.ObjectRef[object]", limit_s: float
    ) -> object:
        try:
            return ray.get(ref, timeout=limit_s)
        except (GetTimeoutError, RayTaskError, RayActorError) as error:
            raise self._error(member, method, error) from None

    def _error(self, member: Member, method: str, error: Exception) -> Exception:
        """Return what the caller sees in place of Ray's error."""
        if isinstance(error, GetTimeoutError):
            problem = f"no answer within {self._time_limit_s:g} s"
        elif isinstance(error, RayTaskError):
            if isinstance(error.cause, StaleWeightsError | ValueError):
                kind = StaleWeightsError if isinstance(error.cause, WorkerError) else ValueError
                return kind(f"{member.name}: {error.cause}")
            cause = error.cause
            problem = f"{type(cause).__name__}: {cause}\n{_last_lines(str(error))}"
        else:
            problem = f"{type(error).__name__}: {_last_lines(str(error))}"
        words = self._last_words(member)
        return WorkerError(
            f"{member.name} must answer {method}, got {problem}"
            + (f"\nLast lines of its log:\n{words}" if words else "")
        )

    def _last_words(self, member: Member) -> str:
        path = self._log_paths.get(member.name)
        if path is None or not Path(path).is_file():
            return ""
        return _last_lines(Path(path).read_text(errors="replace"))


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_NUM_LAST_WORDS:])
