"""Where the processes of cells go, worked out on paper: which node, which GPUs.

Every worker lies on one node whole; one that asks for a part of a GPU shares it with others, one
that asks for several has them to itself. Ray would wait for ever for a place that there is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def workers_of(cluster: ClusterSettings) -> list[Worker]:
    """Return the processes of one cell."""
    return [
        worker
        for num, worker in (
            (
                cluster.num_ranks,
                Worker(kind="rank", cpus=cluster.cpus_per_rank, gpus=cluster.gpus_per_rank),
            ),
            (
                cluster.num_rollout_workers,
                Worker(
                    kind="rollout_worker",
                    cpus=cluster.cpus_per_rollout_worker,
                    gpus=cluster.gpus_per_rollout_worker,
                ),
            ),
            (
                cluster.num_scorer_workers,
                Worker(
                    kind="scorer_worker",
                    cpus=cluster.cpus_per_scorer_worker,
                    gpus=cluster.gpus_per_scorer_worker,
                ),
            ),
        )
        for _ in range(num)
    ]


def place(cluster: ClusterSettings, nodes: Sequence[Resources], whose: str) -> list[Placed]:
    """Return where every process goes of the cells that run side by side.

    Cells are placed one after the other, the largest processes first; where that leaves no room,
    the largest of all cells first.

    Args:
        cluster: Settings of the cells, ``parallel_cells`` of which run side by side.
        nodes: What each node has.
        whose: The owner of the nodes in words.

    Raises:
        ConfigError: a worker fits no node by itself, or all of them together do not.
    """
    cell = sorted(workers_of(cluster), key=_size)
    for worker in dict.fromkeys(cell):
        _require_node(worker, nodes, whose)
    cells = cell * (cluster.parallel_cells or 1)
    found = _placed(cells, nodes) or _placed(sorted(cells, key=_size), nodes)
    if found is None:
        raise ConfigError(
            "cluster",
            f"ask for workers that fit the nodes of {whose} side by side, each on one node "
            f"({', '.join(_text(node) for node in nodes)})",
            ", ".join(f"{cells.count(w)} {_words(w)}" for w in dict.fromkeys(cells)),
            "Take smaller or fewer workers, fewer parallel_cells, or larger nodes.",
        )
    return found


def _placed(workers: Sequence[Worker], nodes: Sequence[Resources]) -> list[Placed] | None:
    rooms = [
        _Room(cpus=node.get("CPU", 0.0), gpus=[1.0] * int(node.get("GPU", 0.0))) for node in nodes
    ]
    found = []
    for worker in workers:
        places = ((i, room.gpus_for(worker)) for i, room in enumerate(rooms))
        node, gpus = next(((i, gpus) for i, gpus in places if gpus is not None), (0, None))
        if gpus is None:
            return None
        rooms[node].take(worker, gpus)
        found.append(Placed(worker=worker, node=node, gpus=gpus))
    return found


def _require_node(worker: Worker, nodes: Sequence[Resources], whose: str) -> None:
    if _placed([worker], nodes) is None:
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
