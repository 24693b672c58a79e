"""The nodes of a Ray cluster: which live, what each answers, how an actor is tied to one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rpa_ray.cluster.placement import Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine, or a part of one, that does work of a cluster."""

    id: str
    address: str
    has: Resources
    free: Resources
    """What nobody has reserved of it."""


def living_nodes() -> list[Node]:
    """Return the nodes of the cluster of this process, in the order of their ids.

    Of one just lost Ray may not know yet.
    """
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    nodes = [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            has=node["Resources"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: node.id)


def only_on(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Return what has a task or an actor run on one node and nowhere else."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def driver_node() -> str:
    """Return the id of the driver's node, of the head where the driver is outside the cluster."""
    return ray.get_runtime_context().get_node_id()


def ask_nodes(
    nodes: Sequence[Node], question: Callable[..., Any], *args: Any, limit_s: float
) -> list[Any]:
    """Call a function on each node, beside whatever runs there; return the answers in order.

    One that fails, or is not there after ``limit_s``, is a RayError in place of its answer.
    """
    task = ray.remote(question)
    refs = [
        task.options(num_cpus=0, max_retries=0, scheduling_strategy=only_on(node.id)).remote(*args)
        for node in nodes
    ]
    ray.wait(refs, num_returns=len(refs), timeout=limit_s)
    return [_answer(ref) for ref in refs]


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=0)
    except RayError as error:
        return error
