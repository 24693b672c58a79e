from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from rpa_ray.campaign import startup
from rpa_ray.campaign.startup import REMIND_EVERY_S, Startup


class Clock:
    """A time that tests move, and which answers are there by now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.there: set[Any] = set()
        self.dead: set[Any] = set()
        monkeypatch.setattr(startup.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(startup.ray, "wait", self.wait)
        monkeypatch.setattr(startup.ray, "get", self.get)

    def get(self, answer: Any) -> None:
        if answer in self.dead:
            raise ActorDiedError

    def wait(self, answers: list[Any], *, num_returns: int, timeout: float) -> Any:
        assert (num_returns, timeout) == (len(answers), 0)
        return [a for a in answers if a in self.there], [a for a in answers if a not in self.there]


def test_each_worker_and_group_is_told_once_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    waits: Any = {"scoring worker 0": "s", "rollout worker 0": "r"}
    looks = Startup(waits, {0: "ranks"}, said.append)
    looks.look([])
    assert said == []
    clock.now, clock.there = 6.2, {"s"}
    looks.look([])
    clock.now, clock.there = 13.0, {"s", "r"}
    looks.look([0])
    clock.now = 99.0
    looks.look([0])
    assert said == [
        "scoring worker 0 up after 6 s",
        "rollout worker 0 up after 13 s",
        "ranks up after 13 s",
    ]


def test_what_is_waited_for_is_told_after_a_while_of_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    looks = Startup({"rollout worker 0": "r"}, {0: "ranks"}, said.append)  # type: ignore[dict-item]
    for clock.now in (1.0, REMIND_EVERY_S + 1, REMIND_EVERY_S + 2):
        looks.look([])
    assert said == ["still starting after 21 s: rollout worker 0, ranks"]


def test_a_worker_that_died_is_not_told_to_be_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), list[str]()
    looks = Startup({"rollout worker 0": "r"}, {}, said.append)  # type: ignore[dict-item]
    clock.now, clock.there, clock.dead = 7.0, {"r"}, {"r"}
    looks.look([])
    assert said == ["rollout worker 0 died while it started after 7 s"]
