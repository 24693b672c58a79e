"""Which nodes a campaign has left, and for how many groups of ranks they have room."""

import threading
from collections.abc import Callable

from rpa_ray.cluster.nodes import Node, ask_nodes, living_nodes
from rpa_ray.cluster.placement import num_that_fit
from rpa_ray.config import ClusterSettings

_NODE_LIMIT_S = 60.0
"""Longest wait until a node has answered, or Ray knows that it is lost."""


class Room:
    """The nodes that are left to groups of ranks, which ask from threads of their own."""

    def __init__(self, cluster: ClusterSettings, num_groups: int) -> None:
        """Take what every group asks for, and how many there are; call on the cluster."""
        self._cluster = cluster
        self._num_groups = num_groups
        self._there = living_nodes()
        self._is_smaller = False
        self._told = self.nodes()
        self._lock = threading.Lock()

    def nodes(self) -> frozenset[str]:
        """Return the addresses and ids of the nodes that were there when last looked."""
        return frozenset(map(_name, self._there))

    def look(self) -> frozenset[str]:
        """Return the nodes that are left; of one just lost it waits until Ray knows.

        A cluster of one node is not asked: it ends with it.
        """
        if len(self._there) > 1:
            ask_nodes(living_nodes(), _answer, limit_s=_NODE_LIMIT_S)
            self._see()
        return self.nodes()

    def tell(self, say: Callable[[str], None]) -> None:
        """Say which nodes were lost since this was last asked."""
        self._see()
        there = self.nodes()
        for name in sorted(self._told - there):
            say(f"lost node {name}; what it held goes on elsewhere, if there is room")
        self._told = there

    def num_excess(self) -> int:
        """Return for how many groups there is no room since nodes were lost.

        The last group stays, and waits for a node.
        """
        with self._lock:
            return self._num_excess()

    def leave(self) -> None:
        """Count one group less."""
        with self._lock:
            self._num_groups -= 1

    def leave_in_excess(self) -> bool:
        """Count one group less where there is no room for it; return whether.

        Of groups that ask at once no more leave than have to.
        """
        with self._lock:
            has_to = self._num_excess() > 0
            self._num_groups -= has_to
            return has_to

    def _num_excess(self) -> int:
        if not self._is_smaller:
            return 0
        rooms = [node.has for node in self._there]
        return self._num_groups - max(1, num_that_fit(self._cluster, rooms, self._num_groups))

    def _see(self) -> None:
        with self._lock:
            before, self._there = self.nodes(), living_nodes()
            self._is_smaller |= not before <= self.nodes()


def _name(node: Node) -> str:
    return f"{node.address} ({node.id[:8]})"


def _answer() -> None:
    pass
