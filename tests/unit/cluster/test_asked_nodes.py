"""Nodes that are asked before all know them, and nodes that are lost meanwhile."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError, TaskUnschedulableError

from rpa_ray.cluster import nodes as nodes_module
from rpa_ray.cluster.nodes import Node, ask_nodes

NEW, LOST, SOUND = (Node(id=name, address=name, has={}, free={}) for name in ("new", "lost", "ok"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of nodes as they are asked: one is not known at first, one is lost."""
    names: list[str] = []

    def answer(name: str, *, timeout: float) -> str:
        if name == "lost" or (name == "new" and names.count(name) == 1):
            raise TaskUnschedulableError("no such node")
        return f"{name} answers"

    def options(*, scheduling_strategy: str, **_: Any) -> Any:
        names.append(scheduling_strategy)
        return SimpleNamespace(remote=lambda *args: scheduling_strategy)

    task = SimpleNamespace(options=options)
    ray = SimpleNamespace(remote=lambda question: task, get=answer)
    monkeypatch.setattr(nodes_module, "ray", ray)
    monkeypatch.setattr(nodes_module, "only_on", lambda name: name)
    monkeypatch.setattr(nodes_module, "_POLL_S", 0.0)
    monkeypatch.setattr(nodes_module, "living_nodes", lambda: [NEW, SOUND])
    return names


def test_a_node_that_is_not_known_yet_is_asked_again_and_a_lost_one_is_left_out(
    asked: list[str],
) -> None:
    found = ask_nodes([NEW, LOST, SOUND], print, limit_s=5.0)
    assert found == [(NEW, "new answers"), (SOUND, "ok answers")]
    assert asked == ["new", "lost", "ok", "new"]


def test_a_node_that_lives_and_is_never_known_is_told(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_module, "living_nodes", lambda: [LOST])
    monkeypatch.setattr(nodes_module, "_KNOWN_WITHIN_S", 0.0)
    ((node, answer),) = ask_nodes([LOST], print, limit_s=5.0)
    assert node == LOST and isinstance(answer, RayError)
