import math
import threading
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.campaign import trial as trial_module
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue
from rpa_ray.campaign.trial import key_of, trial
from rpa_ray.run_folder.files import write_json

POINT = {"attack.kl_coef": 0.1, "data.rho": 0.5}
Reports = list[dict[str, Any]]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    """Return what trials report; the queue is asked in this process."""
    told: Reports = []
    monkeypatch.setattr(trial_module, "ask", lambda queue, name, *args: getattr(queue, name)(*args))
    monkeypatch.setattr(trial_module, "_POLL_S", 0.01)
    monkeypatch.setattr("ray.tune.report", told.append)
    return told


def outcome(folder: Path, status: str, **means: float | None) -> None:
    metrics = {name: {"mean": mean, "n": 4} for name, mean in means.items()}
    path = folder / "evaluation.json"
    write_json(path, {"status": status, "reason": "no space left", "metrics": metrics})


def run_trial(folder: Path, queue: JobQueue, point: dict[str, Any] = POINT) -> None:
    folders = {key_of(POINT): folder}
    trial(point, queue=queue, folders=folders, metric="harm_fluent")


def test_a_cell_begins_when_its_trial_does_and_the_trial_waits_for_it(
    tmp_path: Path, reports: Reports
) -> None:
    cell = tmp_path / "cell"
    queue = JobQueue({"cell": [], "other": []}, held=["cell", "other"])
    assert queue.take(0) == ASK_AGAIN
    waiting = threading.Thread(target=run_trial, args=(cell, queue), daemon=True)
    waiting.start()
    while (taken := queue.take(0)) == ASK_AGAIN:
        pass
    assert (taken, queue.take(1), reports) == ("cell", ASK_AGAIN, [])
    outcome(cell, "ok", harm_fluent=0.5, p_harm=0.75)
    waiting.join(10.0)
    assert reports == [{"harm_fluent": 0.5, "p_harm": 0.75, "run": "cell", "status": "ok"}]


def test_a_trial_finds_its_cell_whatever_the_order_of_the_keys(
    tmp_path: Path, reports: Reports
) -> None:
    outcome(tmp_path, "ok")
    run_trial(tmp_path, JobQueue({}), dict(reversed(POINT.items())))
    assert len(reports) == 1


def test_a_policy_that_broke_is_a_result_without_the_metric(
    tmp_path: Path, reports: Reports
) -> None:
    outcome(tmp_path, "sampling_failed", ppl_median=None)
    run_trial(tmp_path, JobQueue({}))
    (told,) = reports
    assert told["status"] == "sampling_failed"
    assert math.isnan(told["harm_fluent"]) and math.isnan(told["ppl_median"])


def test_a_cell_that_failed_is_an_error_of_its_trial(tmp_path: Path, reports: Reports) -> None:
    outcome(tmp_path, "failed")
    with pytest.raises(RuntimeError, match="no space left"):
        run_trial(tmp_path, JobQueue({}))
    assert [told["status"] for told in reports] == ["failed"]
