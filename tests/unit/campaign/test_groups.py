import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import GetTimeoutError

from rpa_ray.campaign import groups
from rpa_ray.campaign.cell_pools import CellPools
from rpa_ray.campaign.groups import GroupFailed, RankGroup, make_room, work_through
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue, LostJob
from rpa_ray.campaign.ranks import Work, silence_limit_s
from rpa_ray.config import ClusterSettings
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.to_make import Cell, ModelJob

DIES = "the worker died: SIGKILL"


class Nodes:
    """The room of a campaign: nodes that are lost one by one, each noticed after a death."""

    def __init__(self, losses: list[str], *, is_short: bool) -> None:
        self.losses = losses
        self.there = frozenset(["head", *losses])
        self.short = is_short
        self.num_left = 0

    def nodes(self) -> frozenset[str]:
        return self.there

    def look(self) -> frozenset[str]:
        if self.losses:
            self.there -= {self.losses.pop(0)}
        return self.there

    def num_excess(self) -> int:
        return int(self.short and self.num_left == 0)

    def leave(self) -> None:
        self.num_left += 1

    def leave_in_excess(self) -> bool:
        has_to = self.num_excess() > 0
        self.num_left += has_to
        return has_to


class Scene:
    """A queue, and ranks that follow a script: a list of deaths, each after a number of jobs."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **script: Any) -> None:
        self.deaths: list[int] = script.get("deaths", [])
        self.dies_in: str | None = script.get("dies_in")
        self.models: list[str] = script.get("models", [])
        self.nodes = Nodes(script.get("lost_nodes", []), is_short=script.get("is_short", False))
        self.shut_down: list[str] = []
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
            groups, "ask", lambda queue, method, *args, **kw: getattr(queue, method)(*args, **kw)
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
            pools=CellPools(
                rollouts=cast(Any, self._pool("rollouts")), scorers=cast(Any, self._pool("scorers"))
            ),
            cache=tmp_path,
            cluster=ClusterSettings(),
            num_model_threads=1,
        )

    def _pool(self, name: str) -> Any:
        return SimpleNamespace(shut_down=lambda: self.shut_down.append(name))

    def group(self, number: int = 0) -> RankGroup:
        work = replace(self.work, group=number)
        return RankGroup(work, cast(Any, self.nodes), self.tmp_path, self.told.append)

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
        running = [self.group(i) for i in range(num_groups)]
        failure = work_through(running, lambda: None, self.queue.num_waiting)
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
    monkeypatch.setattr(scene.queue, "lose", lambda group, why, counts: lost)
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
    group = scene.group()
    assert begun.wait(30)
    group.stop()
    cluster_is_gone.set()
    group.join(30)
    assert not group.is_alive()
    assert (group.error, scene.told, scene.queue.num_waiting()) == (None, [], 2)
    assert (scene.shut_down, scene.nodes.num_left) == ([], 0)  # the cluster has gone


def test_a_cluster_that_answers_no_longer_is_told_with_what_went_wrong_before() -> None:
    ended = SimpleNamespace(error=GroupFailed("no room"), is_alive=lambda: False)

    def look() -> None:
        raise GetTimeoutError("of 60 s")

    told = work_through([ended], look, lambda: 0)
    assert told == "no room\nthe cluster answers no longer: of 60 s"


def test_a_lost_node_is_not_counted_against_the_job_that_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four deaths at the same job: one more than would give it up, two of them by a node.
    scene = Scene(
        tmp_path, monkeypatch, cells=["a"], deaths=[0, 0, 0, 0], lost_nodes=["second", "third"]
    )
    assert scene.run() == ""
    assert scene.done == [(0, "a")]
    first, second, *others = scene.told
    assert first.startswith("a goes on") and "lost node second: the worker died" in first
    assert "lost node third" in second
    assert len(others) == 2 and "lost node" not in "".join(others)


def test_a_group_for_which_the_other_nodes_have_no_room_leaves_its_job_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a", "b"], lost_nodes=["second"], is_short=True)
    is_lost = threading.Event()

    def run_work(work: Work, *, storage: Path) -> str:
        if work.group == 0:
            scene.queue.take(0)
            is_lost.set()
            return DIES
        assert is_lost.wait(30)
        while scene.nodes.num_left == 0:  # until the other has left
            is_lost.wait(0.01)
        return scene.run_work(work, storage=storage)

    monkeypatch.setattr(groups, "run_work", run_work)
    assert scene.run(num_groups=2) == ""
    assert scene.done == [(1, "a"), (1, "b")]
    assert scene.told[-1] == "group 0 ends: the nodes that are left have no room for it"
    assert scene.shut_down == ["rollouts", "scorers"] * 2
    assert scene.nodes.num_left == 2  # each counted once


def test_jobs_that_no_group_is_left_for_are_told_and_what_releases_them_is_not_waited_for() -> None:
    left = SimpleNamespace(error=GroupFailed("no room"), is_alive=lambda: False)
    tune = SimpleNamespace(error=None, is_alive=lambda: True)
    assert work_through([left], lambda: None, lambda: 1, [tune]) == "no room"


def test_what_releases_the_jobs_is_waited_for_where_a_group_left_and_others_did_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(groups, "_POLL_S", 0.0)
    left = SimpleNamespace(error=GroupFailed("no room"), is_alive=lambda: False)
    asked: list[int] = []
    tune = SimpleNamespace(error=None, is_alive=lambda: len(asked) < 3)
    assert work_through([left], lambda: asked.append(0), lambda: 0, [tune]) == ""
    assert len(asked) == 4  # and once more at the end


def test_the_last_groups_make_way_once_for_which_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, cells=["a"], is_short=True)
    is_over, killed = threading.Event(), list[Any]()
    monkeypatch.setattr(groups, "run_work", lambda work, storage: str(is_over.wait(30) and ""))
    monkeypatch.setattr(groups.ray, "kill", killed.append)
    at_work = [scene.group(i) for i in range(3)]
    try:
        make_room(at_work, cast(Any, scene.nodes))
        assert killed == []  # its ranks are not up yet
        scene.queue.join(1, cast(Any, "rank of 1"))
        scene.queue.join(2, cast(Any, "rank of 2"))
        make_room(at_work, cast(Any, scene.nodes))
        make_room(at_work, cast(Any, scene.nodes))
        assert killed == ["rank of 2"]
        scene.queue.join(2, cast(Any, "next rank of 2"))
        make_room(at_work, cast(Any, scene.nodes))
        assert killed == ["rank of 2", "next rank of 2"]
        scene.nodes.short = False
        scene.queue.join(2, cast(Any, "another"))
        make_room(at_work, cast(Any, scene.nodes))
        assert len(killed) == 2
    finally:
        for group in at_work:
            group.stop()
        is_over.set()
        for group in at_work:
            group.join(30)
