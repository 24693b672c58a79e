from collections.abc import Callable
from typing import Any

import pytest

from rpa_ray.cluster import joined
from rpa_ray.cluster.joined import find_room, still_alive
from rpa_ray.cluster.nodes import Node
from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.plan import parse_tree


class Clock:
    """Time that passes while one sleeps, and the nodes that are there at each time."""

    def __init__(self, nodes: Callable[[float], list[Node]], monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        self.asked: list[Any] = []
        self.told: list[str] = []
        monkeypatch.setattr(joined.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(joined.time, "sleep", self.sleep)
        monkeypatch.setattr(joined, "living_nodes", lambda: nodes(self.now))
        monkeypatch.setattr(joined, "request_resources", lambda bundles: self.asked.append(bundles))

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def node(name: str, gpus: float, free_gpus: float | None = None) -> Node:
    has = {"CPU": 8.0, "GPU": gpus}
    free = has if free_gpus is None else {"CPU": 8.0, "GPU": free_gpus}
    return Node(id=name, address=name, has=has, free=free)


def cell(**cluster: Any) -> ExperimentSettings:
    return parse_tree({"cluster": {"layout": "per_gpu", "timeout_s": 30.0, **cluster}})


def test_as_many_cells_run_as_there_is_free_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda now: [node("a", 2, free_gpus=1), node("b", 2)], monkeypatch)
    places = find_room(cell(), 9, clock.told.append)
    assert (places.num_cells, places.node_ids) == (3, ["a", "b"])
    ranks = [one for one in places.placed if one.worker.kind == "rank"]
    assert [(one.cell, one.node, one.gpus) for one in ranks] == [
        (0, 0, (0,)),
        (1, 1, (0,)),
        (2, 1, (1,)),
    ]
    assert find_room(cell(), 2, clock.told.append).num_cells == 2
    assert find_room(cell(parallel_cells=1), 1, clock.told.append).num_cells == 1
    assert (clock.now, clock.told, clock.asked) == (0, [], [])


def test_a_cluster_that_is_too_small_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda now: [node("a", 0)], monkeypatch)
    with pytest.raises(ConfigError, match=r"at most the 0 GPUs of the Ray cluster, got '1 GPUs'"):
        find_room(cell(), 1, clock.told.append)
    assert clock.now == 0


def test_nodes_that_an_autoscaler_brings_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda now: [node("a", 1 if now >= 45 else 0)], monkeypatch)
    places = find_room(cell(wait_for_nodes_s=60.0), 1, clock.told.append)
    assert (places.num_cells, clock.now) == (1, 45)
    (told,) = clock.told
    assert told.startswith("waiting for room, at most 60 s: cluster must ask for at most the 0 GPU")
    assert clock.asked == [[{"CPU": 2, "GPU": 1}], []]
    with pytest.raises(ConfigError, match="0 GPUs of the Ray cluster"):
        clock.now = -100.0
        find_room(cell(wait_for_nodes_s=60.0), 1, clock.told.append)
    assert clock.now == -40


def test_a_cluster_that_others_use_is_waited_for_and_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(lambda now: [node("a", 1, free_gpus=0)], monkeypatch)
    with pytest.raises(ConfigError) as caught:
        find_room(cell(), 1, clock.told.append)
    assert str(caught.value).startswith(
        "cluster must ask for at most the 0 GPUs of the Ray cluster that nobody uses, got '1 GPUs'"
    )
    assert clock.now == 30


def test_ranks_go_anywhere_where_a_node_of_theirs_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(lambda now: [node("a", 1), node("b", 1)], monkeypatch)
    assert still_alive(["a", "a", "b"]) == ["a", "a", "b"]
    assert still_alive(["a", "c"]) == ()
