from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rpa_ray.campaign import sweep
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue
from rpa_ray.campaign.sweep import Trials
from rpa_ray.plan import load_config
from rpa_ray.plan.cells import plan_cells

SWEEP = "kind: sweep\nattack: ppo\nsweep: {attack.kl_coef: [0.1, 1], data.rho: [0.5]}\n"


class TunerThat:
    """Stands for Tune: does what it is told instead of running trials."""

    def __init__(self, fit: Callable[[], None]) -> None:
        self.fit = fit


def trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Callable[[], None]
) -> tuple[Trials, JobQueue]:
    """Return Tune's trials after their end, with the queue that holds their cells."""
    (tmp_path / "kl.yaml").write_text(SWEEP)
    cells = plan_cells(load_config(tmp_path / "kl.yaml"), tmp_path)
    names = [cell.name for cell in cells]
    queue = JobQueue({name: [] for name in names}, held=names, is_open=True)
    monkeypatch.setattr(sweep, "ask", lambda queue, name, *args: getattr(queue, name)(*args))
    growing: Any = SimpleNamespace(plan=SimpleNamespace(cells=cells))
    tuner: Any = TunerThat(fit)
    tune = Trials(queue, lambda: tuner, growing)
    tune._thread.join(10.0)
    assert not tune.is_alive()
    return tune, queue


def test_cells_that_tune_never_released_are_released_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, queue = trials(tmp_path, monkeypatch, lambda: None)
    assert tune.error is None
    assert ASK_AGAIN not in {queue.take(0), queue.take(0), queue.take(0)}


def test_an_error_of_tune_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError("the disk is full")

    tune, queue = trials(tmp_path, monkeypatch, fails)
    assert str(tune.error) == "the disk is full"
    assert queue.take(0) == ASK_AGAIN
