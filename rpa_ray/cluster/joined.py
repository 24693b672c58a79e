"""Where the cells of a campaign go on a cluster that was joined, once it has room for them."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray.autoscaler.sdk import request_resources

from rpa_ray.cluster.nodes import Node, living_nodes
from rpa_ray.cluster.placement import Placed, num_that_fit, workers_of
from rpa_ray.cluster.resources import require_resources
from rpa_ray.config import ClusterSettings, ConfigError, ExperimentSettings

_ASK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the processes of the cells go that run side by side."""

    num_cells: int
    placed: Sequence[Placed] = ()
    """None where Ray chooses."""
    node_ids: Sequence[str] = ()
    """Ray's name of each node, by its number."""


def find_room(settings: ExperimentSettings, num_cells: int, say: Callable[[str], None]) -> Places:
    """Return where the cells go, after a wait for nodes to come or to be free.

    Args:
        settings: Any cell; all share ``cluster``.
        num_cells: How many run side by side; where ``cluster.parallel_cells`` is not set at most
            so many, and as many as there is free room for.
        say: Takes a line where it has to wait.

    Raises:
        ConfigError: the cluster is too small for ``cluster.wait_for_nodes_s``, or has no free room
            within ``cluster.timeout_s``.
    """
    cluster = settings.cluster
    begun = time.monotonic()
    told = False
    while True:
        try:
            places = _places(settings, num_cells, living_nodes())
            break
        except _NoRoom as refusal:
            limit_s = cluster.timeout_s if refusal.is_busy else cluster.wait_for_nodes_s
            if time.monotonic() - begun >= limit_s:
                raise refusal.error from None
            if not told:
                say(f"waiting for room, at most {limit_s:g} s: {refusal.error}")
                request_resources(bundles=_bundles(cluster))
                told = True
        time.sleep(_ASK_EVERY_S)
    if told:
        request_resources(bundles=[])  # what runs keeps its nodes by itself
    return places


class _NoRoom(Exception):
    """Why there is none, and whether it is only taken."""

    def __init__(self, error: ConfigError, *, is_busy: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_busy = is_busy


def _places(settings: ExperimentSettings, num_cells: int, nodes: Sequence[Node]) -> Places:
    cluster = settings.cluster
    asked = num_cells if cluster.parallel_cells is not None else 1
    for is_busy, whose, rooms in (
        (False, "the Ray cluster", [node.has for node in nodes]),
        (True, "the Ray cluster that nobody uses", [node.free for node in nodes]),
    ):
        if is_busy and cluster.parallel_cells is None:
            asked = max(1, num_that_fit(cluster, rooms, num_cells))
        try:
            placed = require_resources(settings, rooms, whose, asked)
        except ConfigError as error:
            raise _NoRoom(error, is_busy=is_busy) from None
    return Places(num_cells=asked, placed=placed, node_ids=[node.id for node in nodes])


def _bundles(cluster: ClusterSettings) -> list[dict[str, int]]:
    """Return what the processes of a cell ask of an autoscaler, which takes whole numbers."""
    asked = ({"CPU": worker.cpus, "GPU": worker.gpus} for worker in workers_of(cluster))
    return [{unit: math.ceil(num) for unit, num in of.items() if num} for of in asked]


def still_alive(node_ids: Sequence[str]) -> Sequence[str]:
    """Return the names of nodes, or none where one of them is lost: Ray has to choose anew."""
    return node_ids if set(node_ids) <= {node.id for node in living_nodes()} else ()


def free_text() -> str:
    """Return in words what each node has free."""
    return "; ".join(
        f"node {i}: {node.free.get('CPU', 0.0):g} CPUs and {node.free.get('GPU', 0.0):g} GPUs free"
        for i, node in enumerate(living_nodes())
    )
