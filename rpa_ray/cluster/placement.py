"""Where the processes of cells go, worked out on paper: which node, which GPUs.

Every worker lies on one node whole; one that asks for a part of a GPU shares it with others, one
that asks for several has them to itself. Where engines and scorers lie beside ranks, a rank
reserves what all three need. Ray would wait for ever for a place that there is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rpa_ray.config import ClusterSettings, ConfigError

Resources = Mapping[str, float]
"""What a node has, by Ray's names ``CPU`` and ``GPU``."""
_ROUNDING = 1e-6
"""Shares add up to one but for this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One process of a cell and what it reserves."""

    kind: str
    """``rank``, ``rollout_worker`` or ``scorer_worker``, as in the keys of ``cluster``."""
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A process in its place."""

    worker: Worker
    node: int
    gpus: tuple[int, ...]
    """Numbers of its GPUs on the node; none where it has no GPU."""
    cell: int
    number: int
    """Among those of its kind in the cell."""


@dataclass(kw_only=True, slots=True)
class _Room:
    """What is free on a node."""

    cpus: float
    gpus: list[float]
    """Free share of each."""

    def gpus_for(self, worker: Worker) -> tuple[int, ...] | None:
        """Return the GPUs that a worker would get; None where it does not fit."""
        if worker.cpus > self.cpus + _ROUNDING:
            return None
        share = min(worker.gpus, 1.0)
        able = [i for i, free in enumerate(self.gpus) if free + _ROUNDING >= share > 0]
        able.sort(key=lambda i: self.gpus[i])  # the fullest first, so that whole ones stay
        number = -int(-worker.gpus // 1)
        return tuple(able[:number]) if len(able) >= number else None

    def take(self, worker: Worker, gpus: Sequence[int]) -> None:
        self.cpus -= worker.cpus
        for i in gpus:
            self.gpus[i] -= min(worker.gpus, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A process that reserves something, in its cell."""

    worker: Worker
    cell: int
    number: int


def workers_of(cluster: ClusterSettings) -> list[Worker]:
    """Return the processes of one cell that reserve something: ranks alone where all lie beside."""
    if cluster.is_colocated:
        return [_rank_for_all(cluster)] * cluster.num_ranks
    kinds = {
        "rank": cluster.num_ranks,
        "rollout_worker": cluster.num_rollout_workers,
        "scorer_worker": cluster.num_scorer_workers,
    }
    return [
        Worker(
            kind=kind,
            cpus=getattr(cluster, f"cpus_per_{kind}"),
            gpus=getattr(cluster, f"gpus_per_{kind}"),
        )
        for kind, num in kinds.items()
        for _ in range(num)
    ]


def rank_resources(cluster: ClusterSettings) -> dict[str, float]:
    """Return what a rank reserves, by Ray's names, those beside it included; no GPU where none."""
    rank = next(worker for worker in workers_of(cluster) if worker.kind == "rank")
    return {"CPU": rank.cpus} | ({"GPU": rank.gpus} if rank.gpus else {})


def _rank_for_all(cluster: ClusterSettings) -> Worker:
    beside = cluster.cpus_per_rollout_worker + cluster.cpus_per_scorer_worker
    return Worker(kind="rank", cpus=cluster.cpus_per_rank + beside, gpus=cluster.gpus_per_rank)


def place(
    cluster: ClusterSettings, nodes: Sequence[Resources], whose: str, num_cells: int
) -> list[Placed]:
    """Return where every process goes of the cells that run side by side.

    Cells are placed one after the other, the largest processes first; where that leaves no room,
    the largest of all cells first.

    Args:
        cluster: Settings of the cells.
        nodes: What each node has.
        whose: The owner of the nodes in words.
        num_cells: How many cells run side by side.

    Raises:
        ConfigError: a worker fits no node by itself, or all of them together do not.
    """
    for worker in dict.fromkeys(workers_of(cluster)):
        _require_node(worker, nodes, whose)
    found = _cells_placed(cluster, nodes, num_cells)
    if found is None:
        cell = workers_of(cluster)
        raise ConfigError(
            "cluster",
            f"ask for workers that fit the nodes of {whose} side by side, each on one node "
            f"({', '.join(_text(node) for node in nodes)})",
            ", ".join(f"{num_cells * cell.count(w)} {_words(w)}" for w in dict.fromkeys(cell)),
            "Take smaller or fewer workers, fewer parallel_cells, or larger nodes.",
        )
    return found


def num_that_fit(cluster: ClusterSettings, nodes: Sequence[Resources], most: int) -> int:
    """Return how many cells, at most so many, the nodes hold side by side."""
    num = 0
    while num < most and _cells_placed(cluster, nodes, num + 1) is not None:
        num += 1
    return num


def _cells_placed(
    cluster: ClusterSettings, nodes: Sequence[Resources], num_cells: int
) -> list[Placed] | None:
    """Return where the processes of some cells go; None where there is no room."""
    numbers: dict[Worker, int] = {}
    cell = []
    for worker in workers_of(cluster):
        number = numbers[worker] = numbers.get(worker, -1) + 1
        cell.append((worker, number))
    cell.sort(key=lambda one: _size(one[0]))
    cells = [_Asked(worker=w, cell=c, number=i) for c in range(num_cells) for w, i in cell]
    by_size = sorted(cells, key=lambda asked: _size(asked.worker))
    found = _placed(cells, nodes) or _placed(by_size, nodes)
    if found is None or not cluster.is_colocated:
        return found
    return [one for rank in found for one in _beside(rank, cluster)]


def _beside(rank: Placed, cluster: ClusterSettings) -> list[Placed]:
    """Return a rank, and the engine and the scorer on the same GPU, which reserve nothing."""
    workers = (
        Worker(kind="rank", cpus=cluster.cpus_per_rank, gpus=cluster.gpus_per_rank),
        Worker(kind="rollout_worker", cpus=cluster.cpus_per_rollout_worker, gpus=0.0),
        Worker(kind="scorer_worker", cpus=cluster.cpus_per_scorer_worker, gpus=0.0),
    )
    return [replace(rank, worker=worker) for worker in workers]


def _placed(asked: Sequence[_Asked], nodes: Sequence[Resources]) -> list[Placed] | None:
    rooms = [
        _Room(cpus=node.get("CPU", 0.0), gpus=[1.0] * int(node.get("GPU", 0.0))) for node in nodes
    ]
    found = []
    for one in asked:
        places = ((i, room.gpus_for(one.worker)) for i, room in enumerate(rooms))
        node, gpus = next(((i, gpus) for i, gpus in places if gpus is not None), (0, None))
        if gpus is None:
            return None
        rooms[node].take(one.worker, gpus)
        found.append(
            Placed(worker=one.worker, node=node, gpus=gpus, cell=one.cell, number=one.number)
        )
    return found


def _require_node(worker: Worker, nodes: Sequence[Resources], whose: str) -> None:
    if _placed([_Asked(worker=worker, cell=0, number=0)], nodes) is None:
        unit = "gpus" if worker.gpus > max(node.get("GPU", 0.0) for node in nodes) else "cpus"
        raise ConfigError(
            f"cluster.{unit}_per_{worker.kind}",
            f"be what one node of {whose} has ({', '.join(sorted({_text(n) for n in nodes}))})",
            f"{worker.gpus if unit == 'gpus' else worker.cpus:g}",
            "A worker lies on one node: lower it, or take larger nodes.",
        )


def _size(worker: Worker) -> tuple[float, float]:
    return -worker.gpus, -worker.cpus


def _words(worker: Worker) -> str:
    return f"{worker.kind}s of {worker.cpus:g} CPUs and {worker.gpus:g} GPUs"


def _text(node: Resources) -> str:
    return f"{node.get('CPU', 0.0):g} CPUs and {node.get('GPU', 0.0):g} GPUs"
