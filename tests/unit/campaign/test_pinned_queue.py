from types import SimpleNamespace
from typing import Any, cast

import pytest

from rpa_ray.campaign import run
from rpa_ray.plan.plan import Plan


def test_the_queue_lives_on_the_drivers_node_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def options(**given: Any) -> Any:
        asked.update(given)
        return SimpleNamespace(remote=lambda *args, **kwargs: "queue")

    monkeypatch.setattr(run, "driver_node", lambda: "ab" * 28)
    monkeypatch.setattr(run.ray, "remote", lambda kind: SimpleNamespace(options=options))
    plan = cast(Plan, SimpleNamespace(todo=[], needs={}, config=SimpleNamespace(num_undrawn=0)))
    assert run._queue_of(plan, None) == "queue"
    pinned = asked["scheduling_strategy"]
    assert (pinned.node_id, pinned.soft) == ("ab" * 28, False)
