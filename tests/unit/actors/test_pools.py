from typing import Any, cast

import pytest
from ray.exceptions import RayTaskError

from rpa_ray.actors.pools import _contiguous_parts
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
