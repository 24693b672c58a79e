import math
import threading
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.campaign import trial as trial_module
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue
from rpa_ray.campaign.trial import HARM_AT_LOOK, LOOK, RUN, trial, watched_trial
from rpa_ray.config.sweep import key_of
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


def looks_at(*harms: float) -> list[dict[str, float]]:
    return [{"samples": 8.0 * i, "held_out/harm": harm} for i, harm in enumerate(harms, start=1)]


def ended(folder: Path, status: str, looks: list[dict[str, float]]) -> None:
    before = {"samples": 0.0, "held_out/harm": 0.1}
    metrics = {"harm": {"mean": 0.7, "n": 4}} if status == "ok" else {}
    found = {"status": status, "reason": "no", "looks": [before, *looks], "metrics": metrics}
    write_json(folder / "evaluation.json", found)


def told_looks(reports: Reports) -> list[tuple[Any, Any]]:
    return [(told[LOOK], told[HARM_AT_LOOK]) for told in reports if "status" not in told]


def watch(folder: Path, queue: JobQueue) -> threading.Thread:
    """Return a trial at work; it does not end before its cell has."""
    arguments = {"queue": queue, "output": folder.parent}
    thread = threading.Thread(
        target=watched_trial, args=({RUN: folder.name},), kwargs=arguments, daemon=True
    )
    thread.start()
    return thread


def test_a_cell_waits_at_each_look_until_its_trial_goes_on(
    tmp_path: Path, reports: Reports
) -> None:
    queue = JobQueue({"cell": []}, held=["cell"], is_judged=True)
    looks = looks_at(0.2, 0.4, 0.6)
    assert queue.judge("cell", looks[:1]) is None
    waiting = watch(tmp_path / "cell", queue)
    while queue.judge("cell", looks[:1]) is None:
        pass
    assert queue.judge("cell", looks[:1]) is False
    while queue.judge("cell", looks[:2]) is None:
        pass
    assert queue.judge("cell", looks[:2]) is False
    assert told_looks(reports) == [(1, 0.2), (2, 0.4)]
    ended(tmp_path / "cell", "ok", looks)
    waiting.join(10.0)
    assert reports[-1] == {"harm": 0.7, LOOK: 3, HARM_AT_LOOK: 0.6, RUN: "cell", "status": "ok"}
    assert len(reports) == 3


def test_what_was_run_before_is_reported_look_by_look(tmp_path: Path, reports: Reports) -> None:
    ended(tmp_path / "cell", "ok", looks_at(0.2, 0.4))
    watch(tmp_path / "cell", JobQueue({})).join(10.0)
    assert told_looks(reports) == [(1, 0.2)]
    assert (reports[-1]["harm"], reports[-1][LOOK]) == (0.7, 2)


def test_a_stopped_trial_has_its_looks_and_no_metric(tmp_path: Path, reports: Reports) -> None:
    ended(tmp_path / "cell", "stopped", looks_at(0.2, 0.4))
    watch(tmp_path / "cell", JobQueue({})).join(10.0)
    assert told_looks(reports) == [(1, 0.2), (2, 0.4)]
    assert reports[-1] == {LOOK: 2, HARM_AT_LOOK: 0.4, RUN: "cell", "status": "stopped"}


def test_looks_without_an_oracle_are_the_judges(tmp_path: Path, reports: Reports) -> None:
    ended(tmp_path / "cell", "stopped", [{"samples": 8.0, "held_out/p_harm": 0.3}])
    watch(tmp_path / "cell", JobQueue({})).join(10.0)
    assert told_looks(reports) == [(1, 0.3)]


def test_a_trial_without_a_look_stands_before_all_looks(tmp_path: Path, reports: Reports) -> None:
    ended(tmp_path / "cell", "sampling_failed", [])
    watch(tmp_path / "cell", JobQueue({})).join(10.0)
    assert reports == [{LOOK: 0, HARM_AT_LOOK: 0.0, RUN: "cell", "status": "sampling_failed"}]
