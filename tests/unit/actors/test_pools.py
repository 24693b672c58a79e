from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayTaskError

from rpa_ray.actors.pools import Seat, _contiguous_parts, _start
from rpa_ray.actors.worker_pool import Member, WorkerPool, _last_lines


def test_parts_are_contiguous_complete_and_even() -> None:
    assert _contiguous_parts(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert _contiguous_parts(1, 2) == [(0, 0), (0, 1)]
    assert _contiguous_parts(0, 2) == [(0, 0), (0, 0)]


def test_last_lines_skip_blank_ones() -> None:
    text = "\n".join(f"line {i}\n" for i in range(20))
    assert _last_lines(text).splitlines() == [f"line {i}" for i in range(12, 20)]


def test_a_pool_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="members must not be empty"):
        WorkerPool([], time_limit_s=1.0)


def test_a_workers_error_is_told_before_where_it_came_from() -> None:
    pool = WorkerPool([Member(name="worker 0", handle=cast(Any, None))], time_limit_s=1.0)
    trace = "".join(f"  line {i}\n" for i in range(20)) + "RuntimeError: no such kernel"
    error = RayTaskError("load", trace, RuntimeError("no such kernel"))
    told = pool._error(pool._members[0], "load", error)
    assert str(told).splitlines()[0] == (
        "worker 0 must answer load, got RuntimeError: no such kernel"
    )
    assert "line 19" in str(told) and "line 2\n" not in str(told)


class Started:
    """An actor class that notes with what options its actors are started."""

    def __init__(self) -> None:
        self.options_of: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Any:
        self.options_of.append(options)
        handle = SimpleNamespace(prewarm=SimpleNamespace(remote=lambda: None))
        return SimpleNamespace(remote=lambda: handle)


def test_a_worker_beside_a_rank_is_bound_to_its_node_and_sees_its_gpu() -> None:
    started = Started()
    seat = Seat(node_id="a" * 56, gpu_id="3", is_bound=True)
    _start(started, "engine", {"num_cpus": 0, "num_gpus": 0.0}, {"OMP_NUM_THREADS": "1"}, [seat])
    (options,) = started.options_of
    assert options["num_gpus"] == 0
    assert options["runtime_env"]["env_vars"] == {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "3",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    strategy = options["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft) == ("a" * 56, False)


def test_a_worker_that_lies_apart_goes_elsewhere_where_its_node_is_lost() -> None:
    started = Started()
    seats = [Seat(node_id="a" * 56), None]
    members = _start(started, "engine", {"num_cpus": 1, "num_gpus": 1.0}, {}, seats)
    assert [member.name for member in members] == ["engine 0", "engine 1"]
    placed, free = started.options_of
    assert placed["scheduling_strategy"].soft
    assert "scheduling_strategy" not in free
    assert "CUDA_VISIBLE_DEVICES" not in placed["runtime_env"]["env_vars"]
