import subprocess
import sys
import time
from typing import Any

import pytest

from rpa_ray.campaign import queue
from rpa_ray.campaign.watchdog import Watchdog

STANDS_STILL = """
import threading, time
from rpa_ray.campaign.watchdog import Watchdog

def stands_still():
    threading.Event().wait()

with Watchdog(0.5).watching():
    stands_still()
"""
HOLDS_THE_LOCK = """
import ctypes
from rpa_ray.campaign.watchdog import Watchdog

with Watchdog(0.5).watching():
    ctypes.PyDLL(None).sleep(60)
"""
TELLS = """
import time
from rpa_ray.campaign.watchdog import Watchdog

dog = Watchdog(1.0)
with dog.watching():
    for _ in range(15):
        time.sleep(0.1)
        dog.heard()
time.sleep(1.5)
dog.heard()
time.sleep(1.5)
"""


def ends(program: str) -> tuple[int, str, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.parametrize("program", [STANDS_STILL, HOLDS_THE_LOCK])
def test_a_process_that_stands_still_ends_and_shows_where(program: str) -> None:
    status, shown, _ = ends(program)
    assert status == 1
    assert "Timeout" in shown
    assert "stands_still" in shown or program is HOLDS_THE_LOCK


def test_one_that_gives_signs_of_life_or_is_not_watched_goes_on() -> None:
    status, shown, seconds = ends(TELLS)
    assert (status, shown) == (0, "")
    assert seconds > 4


@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_told_of_a_job_is_a_sign_of_life_on_every_rank(enabled: bool) -> None:
    class Heard(Watchdog):
        count = 0

        def heard(self) -> None:
            self.count += 1

    class Told:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, method: str) -> Any:
            return type("Method", (), {"remote": lambda *args: self.calls.append(method)})

    dog, told = Heard(60), Told()
    actor: Any = told
    progress = queue.QueueProgress(actor, enabled=enabled, watchdog=dog)
    progress.begin("a")
    progress.start("a", 3)
    progress.enter("a", "attack")
    progress.advance("a", 0, "")
    progress.end("a", "ok")
    assert dog.count == 5
    assert told.calls == ["begin", "start", "enter", "advance", "end"] * enabled
