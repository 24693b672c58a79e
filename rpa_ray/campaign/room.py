"""Which nodes a campaign has left, and for how many groups of ranks they have room."""

import threading
from collections.abc import Callable

from rpa_ray.cluster.nodes import Node, ask_nodes, living_nodes
from rpa_ray.cluster.placement import place
from rpa_ray.config import ClusterSettings, ConfigError

_NODE_LIMIT_S = 60.0
"""Longest wait until a node has answered, or Ray knows that it is lost."""


class Room:
    """The nodes that are left to groups of ranks, which ask from threads of their own."""

    def __init__(self, cluster: ClusterSettings, num_groups: int) -> None:
        """Take what every group asks for, and how many there are; call on the cluster."""
        self._cluster = cluster
        self._num_groups = num_groups
        self._there = living_nodes()
        self._told = frozenset(map(_name, self._there))
        self._lock = threading.Lock()

    def nodes(self) -> frozenset[str]:
        """Return the addresses and ids of the nodes that were there when last looked."""
        with self._lock:
            return frozenset(map(_name, self._there))

    def look(self) -> frozenset[str]:
        """Return the nodes that are left; of one just lost it waits until Ray knows.

        A cluster of one node is not asked: it ends with it.
        """
        with self._lock:
            if len(self._there) > 1:
                ask_nodes(living_nodes(), _answer, limit_s=_NODE_LIMIT_S)
                self._there = living_nodes()
            return frozenset(map(_name, self._there))

    def is_short(self) -> bool:
        """Return whether a group has to leave for the others to fit; the last one stays."""
        with self._lock:
            return self._num_groups > 1 and not self._fit()

    def leave(self) -> None:
        """Count one group less."""
        with self._lock:
            self._num_groups -= 1

    def tell(self, say: Callable[[str], None]) -> None:
        """Say which nodes were lost since this was last asked."""
        there = frozenset(map(_name, living_nodes()))
        for name in sorted(self._told - there):
            say(f"lost node {name}; what it held goes on elsewhere, if there is room")
        self._told = there

    def _fit(self) -> bool:
        cluster = self._cluster.model_copy(update={"parallel_cells": self._num_groups})
        try:
            place(cluster, [node.resources for node in self._there], "the Ray cluster")
        except ConfigError:
            return False
        return True


def _name(node: Node) -> str:
    return f"{node.address} ({node.id[:8]})"


def _answer() -> None:
    pass
