"""The engines and scorers of one cell: on GPUs of their own, or on those of its ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from rpa_ray.actors.pools import (
    RolloutPool,
    ScorerPool,
    Seat,
    create_rollout_pool,
    create_scorer_pool,
)
from rpa_ray.cluster.placement import Placed
from rpa_ray.config import ClusterSettings

if TYPE_CHECKING:
    from rpa_ray.learner.ranks import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class CellPools:
    """Workers that serve one group of ranks."""

    rollouts: RolloutPool
    scorers: ScorerPool

    def shut_down(self) -> None:
        """Kill them."""
        self.rollouts.shut_down()
        self.scorers.shut_down()


def pools_apart(cluster: ClusterSettings, seats: Mapping[str, Sequence[Seat]]) -> CellPools:
    """Start the workers of a cell that reserve what they need; they outlive its ranks.

    Args:
        cluster: Settings of the cell.
        seats: Where they lie, by the kind of worker; of a kind without any Ray chooses.
    """
    return CellPools(
        rollouts=create_rollout_pool(
            cluster.num_rollout_workers,
            num_cpus=cluster.cpus_per_rollout_worker,
            num_gpus=cluster.gpus_per_rollout_worker,
            num_threads=cluster.threads_per_process,
            time_limit_s=cluster.timeout_s,
            seats=seats.get("rollout_worker", ()),
        ),
        scorers=create_scorer_pool(
            cluster.num_scorer_workers,
            num_cpus=cluster.cpus_per_scorer_worker,
            num_gpus=cluster.gpus_per_scorer_worker,
            num_threads=cluster.threads_per_process,
            time_limit_s=cluster.timeout_s,
            seats=seats.get("scorer_worker", ()),
        ),
    )


def seats_of(placed: Sequence[Placed], cell: int, node_ids: Sequence[str]) -> dict[str, list[Seat]]:
    """Return where the workers of a cell lie, by their kind.

    Args:
        placed: The processes of all cells.
        cell: Number of the cell among them.
        node_ids: Ray's name of each node.
    """
    seats: dict[str, list[Seat]] = {}
    for one in sorted(placed, key=lambda one: one.number):
        if one.cell == cell:
            seats.setdefault(one.worker.kind, []).append(Seat(node_id=node_ids[one.node]))
    return seats


def pools_beside(cluster: ClusterSettings, ranks: "Ranks") -> CellPools:
    """Start an engine and a scorer beside each rank; a collective of the ranks, which end them.

    They reserve nothing: each rank has reserved what all three need. The main rank owns them, so
    that they die with it.
    """
    seats = [seat for of_rank in ranks.gather([own_seat()]) for seat in of_rank]
    return ranks.broadcast(_pools_on(cluster, seats) if ranks.is_main else None)  # type: ignore[return-value]


def own_seat() -> Seat:
    """Return where this process lies, for those that are put beside it."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids()["GPU"]
    return Seat(node_id=context.get_node_id(), gpu_id=gpus[0] if gpus else None, is_bound=True)


def _pools_on(cluster: ClusterSettings, seats: Sequence[Seat]) -> CellPools:
    threads, limit_s = cluster.threads_per_process, cluster.timeout_s
    return CellPools(
        rollouts=create_rollout_pool(
            len(seats), num_cpus=0, num_threads=threads, time_limit_s=limit_s, seats=seats
        ),
        scorers=create_scorer_pool(
            len(seats), num_cpus=0, num_threads=threads, time_limit_s=limit_s, seats=seats
        ),
    )
