from typing import Any

import pytest

from rpa_ray.campaign import room
from rpa_ray.campaign.room import Room
from rpa_ray.cluster.nodes import Node
from rpa_ray.config import ClusterSettings


def node(number: int, cpus: float = 2.0) -> Node:
    return Node(id=f"{number}" * 56, address=f"192.0.2.{number}", has={"CPU": cpus}, free={})


class Cluster:
    """Nodes, of which some are dead before Ray knows it: it does once they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
        self.there = list(nodes)
        self.dead: list[Node] = []
        self.num_asked = 0
        monkeypatch.setattr(room, "living_nodes", lambda: list(self.there))
        monkeypatch.setattr(room, "ask_nodes", self.ask)

    def ask(self, nodes: list[Node], question: Any, *, limit_s: float) -> None:
        self.num_asked += 1
        self.there = [one for one in self.there if one not in self.dead]


# A group takes all of a node of two CPUs.
CLUSTER = ClusterSettings(
    cpus_per_rank=1.0, cpus_per_rollout_worker=0.5, cpus_per_scorer_worker=0.5
)


def test_a_node_that_ray_does_not_know_to_be_lost_is_found_by_asking_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch, node(1), node(2))
    found = Room(CLUSTER, 2)
    cluster.dead = [node(2)]
    assert found.nodes() - found.look() == {"192.0.2.2 (22222222)"}
    assert found.nodes() == {"192.0.2.1 (11111111)"}


def test_a_cluster_of_one_node_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, node(1))
    assert Room(CLUSTER, 1).look() == {"192.0.2.1 (11111111)"}
    assert cluster.num_asked == 0


def test_groups_leave_until_the_others_fit_and_the_last_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch, node(1), node(2), node(3))
    found = Room(CLUSTER, 3)
    cluster.dead = [node(2), node(3)]
    found.look()
    assert found.num_excess() == 2
    found.leave()
    assert found.num_excess() == 1
    # Two whose ranks died with one node ask at once.
    assert [found.leave_in_excess(), found.leave_in_excess()] == [True, False]
    assert found.num_excess() == 0
    cluster.there = [node(1, cpus=1.0), node(4, cpus=0.0)]
    found.look()
    assert found.num_excess() == 0  # nor has one group room: it waits for a node


def test_no_group_has_to_leave_as_long_as_every_node_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch, node(1), node(2))
    found = Room(CLUSTER, 3)  # Ray may have found room where there is none on paper
    cluster.there.append(node(3))
    found.look()
    cluster.there.append(node(4))
    found.look()
    assert found.num_excess() == 0


def test_a_lost_node_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = Cluster(monkeypatch, node(1), node(2)), list[str]()
    found = Room(CLUSTER, 1)
    found.tell(said.append)
    cluster.there = [node(1)]
    found.tell(said.append)
    found.tell(said.append)
    assert said == [
        "lost node 192.0.2.2 (22222222); what it held goes on elsewhere, if there is room"
    ]
