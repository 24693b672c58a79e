from collections.abc import Callable
from pathlib import Path

import pytest

from rpa_ray.campaign import sweep
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue
from rpa_ray.campaign.sweep import Trials
from rpa_ray.plan import LoadedConfig, load_config
from rpa_ray.plan.cells import plan_cells

SWEEP = "kind: sweep\nattack: ppo\nsweep: {attack.kl_coef: [0.1, 1], data.rho: [0.5]}\n"


class TunerThat:
    """Stands for Tune: does what it is told instead of running trials."""

    def __init__(self, fit: Callable[[], None]) -> None:
        self.fit = fit


def config_of(folder: Path) -> LoadedConfig:
    (folder / "kl.yaml").write_text(SWEEP)
    return load_config(folder / "kl.yaml")


def trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Callable[[], None]
) -> tuple[Trials, JobQueue]:
    """Return Tune's trials after their end, with the queue that holds their cells."""
    config = config_of(tmp_path)
    assert config.sweep is not None
    cells = plan_cells(config, tmp_path)
    names = [cell.name for cell in cells]
    queue = JobQueue({name: [] for name in names}, held=names)
    monkeypatch.setattr(sweep, "ask", lambda queue, name, *args: getattr(queue, name)(*args))
    monkeypatch.setattr(Trials, "_tuner", lambda self: TunerThat(fit))
    tune = Trials(queue, config.sweep, cells, state=tmp_path / "tune", resume=False, num_groups=1)
    tune._thread.join(10.0)
    assert not tune.is_alive()
    return tune, queue


def test_cells_that_tune_never_released_are_released_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, queue = trials(tmp_path, monkeypatch, lambda: None)
    assert tune.error is None
    assert ASK_AGAIN not in {queue.take(0), queue.take(0)}


def test_an_error_of_tune_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError("the disk is full")

    tune, queue = trials(tmp_path, monkeypatch, fails)
    assert str(tune.error) == "the disk is full"
    assert queue.take(0) == ASK_AGAIN
