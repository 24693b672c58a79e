"""The nodes of a Ray cluster: which live, what each answers, how an actor is tied to one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rpa_ray.cluster.placement import Resources

_KNOWN_WITHIN_S = 60.0
"""Longest time until all nodes know one that is new, or that it is lost."""
_POLL_S = 0.5


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
    nodes: Sequence[Node],
    question: Callable[..., Any],
    *args: Any,
    limit_s: float,
    num_gpus: float = 0.0,
) -> list[tuple[Node, Any]]:
    """Call a function on each node, beside whatever runs there; return nodes and answers in order.

    One that fails, or is not there after ``limit_s``, is a RayError in place of its answer. A node
    that turns out to be lost is left out.

    Args:
        nodes: Which are asked.
        question: What is called there.
        args: What with.
        limit_s: Longest wait.
        num_gpus: Share of a GPU that it takes meanwhile.
    """
    task = ray.remote(question)
    deadline = time.monotonic() + limit_s

    def ask(node: Node) -> Any:
        return task.options(
            num_cpus=0,
            num_gpus=num_gpus,
            max_retries=0,
            scheduling_strategy=only_on(node.id),
        ).remote(*args)

    def answer_of(node: Node, ref: Any) -> Any:
        known_by = min(deadline, time.monotonic() + _KNOWN_WITHIN_S)
        while isinstance(answer := _answer(ref, deadline), TaskUnschedulableError):
            # Nodes hear of each other, and of the loss of one, some time after it was.
            if time.monotonic() > known_by or not _lives(node):
                break
            time.sleep(_POLL_S)
            ref = ask(node)
        return answer

    refs = [ask(node) for node in nodes]
    answers = [(node, answer_of(node, ref)) for node, ref in zip(nodes, refs, strict=True)]
    return [(node, a) for node, a in answers if not isinstance(a, RayError) or _lives(node)]


def _lives(node: Node) -> bool:
    return node.id in {other.id for other in living_nodes()}


def _answer(ref: Any, deadline: float) -> Any:
    try:
        return ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
    except RayError as error:
        return error
