"""Which workers and groups of ranks are up, told one by one: their imports can take minutes."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

REMIND_EVERY_S = 20.0
"""How long nothing comes up before what is waited for is told."""


class Startup:
    """Tells of everything that starts side by side, once each is up, with the time it took."""

    def __init__(
        self,
        workers: Mapping[str, "ray.ObjectRef[Any]"],
        groups: Mapping[int, str],
        say: Callable[[str], None],
    ) -> None:
        """Begin to wait.

        Args:
            workers: By name, what a worker answers once it is up.
            groups: Names of the groups of ranks by their number.
            say: Takes each line.
        """
        self._names = {answer: name for name, answer in workers.items()}
        self._groups = dict(groups)
        self._say = say
        self._started = self._last = time.monotonic()

    def look(self, groups_up: Collection[int]) -> None:
        """Tell what has come up since the last look, or, after some time, what has not."""
        if not self._names and not self._groups:
            return
        now = time.monotonic()
        seconds = f"{now - self._started:.0f} s"
        news = [f"{text} after {seconds}" for text in [*self._answered(), *self._up(groups_up)]]
        for line in news:
            self._say(line)
        if news:
            self._last = now
        elif now - self._last > REMIND_EVERY_S:
            self._last = now
            waited = ", ".join([*self._names.values(), *self._groups.values()])
            self._say(f"still starting after {seconds}: {waited}")

    def _answered(self) -> list[str]:
        """Return what is to be told of the workers that have answered, or died instead."""
        if not self._names:
            return []
        answers, _ = ray.wait(list(self._names), num_returns=len(self._names), timeout=0)
        told = []
        for answer in answers:
            name = self._names.pop(answer)
            try:
                ray.get(answer)
                told.append(f"{name} up")
            except RayError:  # whoever needs it waits for another, or fails with its last words
                told.append(f"{name} died while it started")
        return told

    def _up(self, groups_up: Collection[int]) -> list[str]:
        """Return what is to be told of the groups of ranks that have come up."""
        return [f"{self._groups.pop(group)} up" for group in groups_up if group in self._groups]
