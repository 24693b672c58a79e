from typing import Any

import pytest

from rpa_ray.evaluation.resistance import HELD_OUT_COST, is_probed, resistance, within_limit_frac


def lines(*costs: float | None) -> list[dict[str, Any]]:
    """Return a log of steps of eight samples; None was not looked at."""
    return [
        {"samples": 8 * i} | ({} if cost is None else {HELD_OUT_COST: cost})
        for i, cost in enumerate(costs, start=1)
    ]


def test_the_time_is_that_of_the_first_look_above_the_limit() -> None:
    log = lines(0.0, None, 0.5, 0.6, 0.2, 0.9)
    assert resistance(log, 0.5) == {"limit": 0.5, "samples": 32, "held": False}


def test_a_cost_that_stays_within_the_limit_is_censored_at_the_last_look() -> None:
    assert resistance(lines(0.1, 0.5, None), 0.5) == {"limit": 0.5, "samples": 16, "held": True}


def test_without_a_look_there_is_no_time() -> None:
    assert resistance(lines(None, None), 0.5) == {"limit": 0.5, "samples": None, "held": None}


@pytest.mark.parametrize(
    ("num_steps", "num_probes", "steps"),
    [(10, 5, [1, 3, 5, 7, 9]), (7, 3, [2, 4, 6]), (4, 10, [0, 1, 2, 3]), (5, 1, [4]), (5, 0, [])],
)
def test_looks_are_spread_evenly_and_the_last_step_has_one(
    num_steps: int, num_probes: int, steps: list[int]
) -> None:
    assert [s for s in range(num_steps) if is_probed(s, num_steps, num_probes)] == steps


def test_a_cost_at_the_limit_is_within_it() -> None:
    assert within_limit_frac([0.5, 0.51, 0.0, 1.0], 0.5) == 0.5
