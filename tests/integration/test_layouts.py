"""Cells on GPUs that are only declared: what Ray makes of each file of `configs/cluster`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rpa_ray.actors import pools
from rpa_ray.actors.pools import Seat
from rpa_ray.campaign import ranks
from rpa_ray.campaign.cell_pools import CellPools, own_seat, pools_apart, pools_beside, seats_of
from rpa_ray.cluster.joined import find_room
from rpa_ray.cluster.placement import rank_resources
from rpa_ray.config import ClusterSettings
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plan import parse_tree
from rpa_ray.plan.files import CLUSTERS, read_cluster

START_S = 120.0

pytestmark = pytest.mark.timeout(600)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Place = tuple[str, str]
"""A node and the GPUs that a process sees on it."""


class Where:
    """In place of an engine or a scorer: says where it lies."""

    def prewarm(self) -> None:
        """Have nothing to import."""

    def where(self) -> Place:
        node_id: str = ray.get_runtime_context().get_node_id()
        return node_id, os.environ.get("CUDA_VISIBLE_DEVICES", "")


class Rank(Where):
    """In place of the learner rank of a one-rank group or of the main rank: owns the pools."""

    def seat(self) -> Seat:
        return own_seat()

    def pools_beside(self, cluster: ClusterSettings, seats: list[Seat]) -> CellPools:
        put_stand_ins()
        self.pools = pools_beside(cluster, AllRanks(seats))  # type: ignore[arg-type]
        return self.pools


class AllRanks:
    """What the main rank hears of the others."""

    is_main = True

    def __init__(self, seats: list[Seat]) -> None:
        self._seats = seats

    def gather(self, own: list[Seat]) -> list[list[Seat]]:
        assert own == self._seats[:1]
        return [[seat] for seat in self._seats]

    def broadcast(self, value: Any) -> Any:
        return value


def put_stand_ins() -> None:
    pools.RolloutWorker = pools.ScoringWorker = Where  # type: ignore[misc,assignment]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """Return a cluster of two nodes, each of which says that it has eight GPUs."""
    node = {"num_cpus": 96, "num_gpus": 8, "object_store_memory": 80 * 2**20}
    # Or a node would start a worker for each of its CPUs.
    quiet = {"include_dashboard": False, "_system_config": {"prestart_worker_first_driver": False}}
    cluster = Cluster(initialize_head=True, head_node_args={**node, **quiet})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "RolloutWorker", Where)
    monkeypatch.setattr(pools, "ScoringWorker", Where)


class Lane:
    """The processes of one cell, started as a campaign starts them."""

    def __init__(self, cluster: ClusterSettings, seats: dict[str, list[Seat]]) -> None:
        self._cluster = cluster
        apart = None if cluster.is_colocated else pools_apart(cluster, seats)
        resources = rank_resources(cluster)
        self._group = placement_group(
            [resources] * cluster.num_ranks,
            strategy="PACK",
            bundle_label_selector=[{ranks._NODE_LABEL: seat.node_id} for seat in seats["rank"]],
        )
        actor: Any = ray.remote(Rank)
        self._ranks = [
            actor.options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, i),
            ).remote()
            for i in range(cluster.num_ranks)
        ]
        self._pools = apart

    def places(self) -> dict[str, list[Place]]:
        """Return where the processes of each kind lie."""
        of_ranks = ray.get([rank.where.remote() for rank in self._ranks], timeout=START_S)
        if self._pools is None:
            seats = ray.get([rank.seat.remote() for rank in self._ranks])
            asked = self._ranks[0].pools_beside.remote(self._cluster, seats)
            self._pools = ray.get(asked, timeout=START_S)
        return {
            "rank": of_ranks,
            "rollout_worker": self._pools.rollouts.call_all("where"),  # type: ignore[dict-item]
            "scorer_worker": self._pools.scorers.call_all("where"),  # type: ignore[dict-item]
        }

    def stop(self) -> None:
        """End all of it."""
        assert self._pools is not None
        if not self._cluster.is_colocated:
            self._pools.rollouts.shut_down()
            self._pools.scorers.shut_down()
        for rank in self._ranks:
            ray.kill(rank)
        remove_placement_group(self._group)


@pytest.mark.parametrize("file", sorted(CLUSTERS.glob("*.yaml")), ids=lambda file: file.stem)
def test_ray_puts_every_process_where_the_plan_has_it(
    file: Path, two_nodes: None, stand_ins: None
) -> None:
    settings = parse_tree({"cluster": read_cluster(file.stem)})
    cluster = settings.cluster
    places = find_room(settings, cluster.parallel_cells or 3, print)
    lanes = [
        Lane(cluster, seats_of(places.placed, cell, places.node_ids))
        for cell in range(places.num_cells)
    ]
    try:
        found = [lane.places() for lane in lanes]
    finally:
        for lane in lanes:
            lane.stop()
    for cell, of_cell in enumerate(found):
        for kind, of_kind in of_cell.items():
            planned = [
                (places.node_ids[one.node], len(one.gpus))
                for one in places.placed
                if (one.cell, one.worker.kind) == (cell, kind)
            ]
            made = [(node, len(gpus.split(",")) if gpus else 0) for node, gpus in of_kind]
            assert sorted(made) == sorted(planned)
    if cluster.is_colocated:
        for of_cell in found:
            assert of_cell["rollout_worker"] == of_cell["scorer_worker"] == of_cell["rank"]
    kinds = ["rank"] if cluster.is_colocated else list(found[0])
    taken = [place for of_cell in found for kind in kinds for place in of_cell[kind] if place[1]]
    assert len(set(taken)) == len(taken)


def test_ranks_of_ray_train_have_their_engines_beside_them(
    two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse_tree({"cluster": {"layout": "colocated", "num_ranks": 2}})
    cluster = settings.cluster

    def tell(config: dict[str, Any]) -> None:
        put_stand_ins()
        current = Ranks.current()
        made = pools_beside(cluster, current)
        seats = [seat for of_rank in current.gather([own_seat()]) for seat in of_rank]
        engines = made.rollouts.call_all("where")
        (tmp_path / f"rank{current.rank}.txt").write_text(
            repr(([(seat.node_id, seat.gpu_id) for seat in seats], engines))
        )
        current.barrier()

    from ray.train.torch import TorchConfig

    ranks.set_train_environment()
    monkeypatch.setattr(ranks, "work", tell)
    monkeypatch.setattr(ranks, "_torch_config", lambda *_: TorchConfig(backend="gloo"))
    nobody: Any = None
    places = find_room(settings, 1, print)
    given = ranks.Work(
        group=0,
        jobs={},
        queue=nobody,
        node_ids=[seat.node_id for seat in seats_of(places.placed, 0, places.node_ids)["rank"]],
        pools=None,
        cache=tmp_path,
        cluster=cluster,
        num_model_threads=1,
    )
    assert ranks.run_work(given, storage=tmp_path) == ""
    for rank in range(2):
        told, engines = eval((tmp_path / f"rank{rank}.txt").read_text())
        assert told == engines
        assert len(set(engines)) == 2
