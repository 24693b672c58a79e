import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import GetTimeoutError

from rpa_ray.campaign import groups
from rpa_ray.campaign.groups import GroupFailed, RankGroup, work_through
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue, LostJob
from rpa_ray.campaign.ranks import Work, silence_limit_s
from rpa_ray.config import ClusterSettings
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.to_make import Cell, ModelJob

DIES = "the worker died: SIGKILL"


class Scene:
    """A queue, and ranks that follow a script: a list of deaths, each after a number of jobs."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **script: Any) -> None:
        self.deaths: list[int] = script.get("deaths", [])
        self.dies_in: str | None = script.get("dies_in")
        self.models: list[str] = script.get("models", [])
        needs = {name: self.models[:i] for i, name in enumerate(self.models)}
        self.queue = JobQueue(needs | dict.fromkeys(script["cells"], self.models))
        self.is_over = threading.Event()
        self.done: list[tuple[int, str]] = []
        self.told: list[str] = []
        self.storages: list[Path] = []
        self.tmp_path = tmp_path
        monkeypatch.setattr(groups, "run_work", self.run_work)
        monkeypatch.setattr(groups, "_POLL_S", 0.01)
        monkeypatch.setattr(
            groups, "ask", lambda queue, method, *args: getattr(queue, method)(*args)
        )
        jobs: dict[str, Any] = {
            name: Cell(name=name, settings=parse_tree({}), folder=tmp_path / name)
            for name in script["cells"]
        }
        jobs |= {name: cast(ModelJob, object()) for name in self.models}
        self.work = Work(
            group=0,
            jobs=jobs,
            queue=cast(Any, self.queue),
            pools=None,
            cache=tmp_path,
            cluster=ClusterSettings(),
            num_model_threads=1,
        )

    def run_work(self, work: Work, *, storage: Path) -> str:
        self.storages.append(storage)
        num_left = self.deaths.pop(0) if self.deaths else None
        while num_left != 0:
            job = self.queue.take(work.group)
            if job is None:
                return ""
            if job == ASK_AGAIN:
                if self.is_over.wait(0.01):
                    return DIES
                continue
            if job == self.dies_in:
                return DIES
            self.done.append((work.group, job))
            num_left = num_left - 1 if num_left is not None else None
        # It dies in its next job, or, with none taken, before.
        self.queue.take(work.group)
        return DIES

    def run(self, num_groups: int = 1) -> str:
        running = [
            RankGroup(replace(self.work, group=i), self.tmp_path, self.told.append)
            for i in range(num_groups)
        ]
        failure = work_through(running, lambda: None)
        for group in running:
            group.stop()
        self.is_over.set()
        for group in running:
            group.join(30)
            assert not group.is_alive()
        return failure


def test_ranks_that_live_do_every_job_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, models=["chat"], cells=["a", "b"])
    assert scene.run() == ""
    assert scene.done == [(0, "chat"), (0, "a"), (0, "b")]
    assert (len(scene.storages), scene.told) == (1, [])


def test_ranks_that_died_are_started_again_at_the_job_they_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a", "b", "c"], deaths=[1, 0])
    assert scene.run() == ""
    assert scene.done == [(0, "a"), (0, "b"), (0, "c")]
    assert scene.told == [
        f"b goes on from its last checkpoint, its ranks died: {DIES}",
        f"b goes on from its last checkpoint, its ranks died: {DIES}",
    ]


def test_a_job_of_which_nothing_was_heard_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a"], deaths=[0])
    limit_s = silence_limit_s(scene.work.cluster)
    lost = LostJob(name="a", given_up=False, silent_s=limit_s)
    monkeypatch.setattr(scene.queue, "lose", lambda group, why: lost)
    scene.run()
    (told,) = scene.told
    assert f"nothing was heard of it for {limit_s:g} s" in told
    assert "Raise cluster.timeout_s" in told and DIES in told


def test_every_group_has_a_storage_of_its_own_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a", "b"], deaths=[1])
    scene.run()
    assert len(set(scene.storages)) == 2
    assert not any(storage.exists() for storage in scene.storages)


def test_a_cell_that_kills_its_ranks_is_recorded_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a", "b", "c"], dies_in="b")
    assert scene.run() == ""
    assert scene.done == [(0, "a"), (0, "c")]
    assert len(scene.told) == 3
    text = (tmp_path / "b" / "evaluation.json").read_text()
    assert '"status": "failed"' in text
    assert DIES in text


def test_a_model_that_cannot_be_made_fails_the_cells_that_need_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["base", "chat", "judge"]
    scene = Scene(tmp_path, monkeypatch, models=models, cells=["a", "b", "c"], dies_in="base")
    # chat is made of base, a needs chat, b the judge alone, c nothing
    needs = {"base": [], "chat": ["base"], "judge": [], "a": ["chat"], "b": ["judge"], "c": []}
    scene.queue = JobQueue(needs)
    scene.work = replace(scene.work, queue=cast(Any, scene.queue))
    assert scene.run() == ""
    assert scene.done == [(0, "judge"), (0, "b"), (0, "c")]
    record = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"] == f"base, which the cell needs, was given up: {DIES}"
    assert {s.name for s in scene.queue.jobs() if s.status == "failed"} == {"base", "chat", "a"}
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_ranks_that_never_start_end_the_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a"])
    monkeypatch.setattr(groups, "run_work", lambda work, storage: DIES)
    assert scene.run() == DIES
    assert len(scene.told) == 3


def test_lanes_share_the_jobs_and_cells_come_after_the_models_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"cell{i}" for i in range(40)]
    scene = Scene(tmp_path, monkeypatch, models=["base", "chat"], cells=names)
    assert scene.run(num_groups=2) == ""
    assert [name for _, name in scene.done[:2]] == ["base", "chat"]
    assert sorted(name for _, name in scene.done[2:]) == sorted(names)


def test_one_that_was_stopped_starts_no_other_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a", "b"])
    begun, cluster_is_gone = threading.Event(), threading.Event()

    def work_until_the_cluster_is_gone(work: Work, *, storage: Path) -> str:
        begun.set()
        assert cluster_is_gone.wait(30)
        return DIES

    monkeypatch.setattr(groups, "run_work", work_until_the_cluster_is_gone)
    group = RankGroup(scene.work, tmp_path, scene.told.append)
    assert begun.wait(30)
    group.stop()
    cluster_is_gone.set()
    group.join(30)
    assert not group.is_alive()
    assert (group.error, scene.told, scene.queue.num_waiting()) == (None, [], 2)


def test_a_cluster_that_answers_no_longer_is_told_with_what_went_wrong_before() -> None:
    ended = SimpleNamespace(error=GroupFailed("no room"), is_alive=lambda: False)

    def look() -> None:
        raise GetTimeoutError("of 60 s")

    told = work_through([ended], look)
    assert told == "no room\nthe cluster answers no longer: of 60 s"
