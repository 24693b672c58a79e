import pytest

from rpa_ray.campaign.cell_clock import SlowSteps, slow_step_cause


def test_slow_steps_are_told_once_and_not_from_the_first_steps() -> None:
    slow = SlowSteps({"a": 0.1, "b": 0.1})
    look = {"dtype": "float32", "num_busy": 1}
    assert slow.look("a", 2, 100.0, **look) == ""  # type: ignore[arg-type]
    assert slow.look("a", 10, 4.9, **look) == ""  # type: ignore[arg-type]
    assert slow.look("unknown", 10, 99.0, **look) == ""  # type: ignore[arg-type]
    told = slow.look("a", 10, 6.0, **look)  # type: ignore[arg-type]
    assert told.startswith("steps take 0.6 s, 6 times the estimate: ")
    assert slow.look("b", 10, 99.0, **look) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("doubt", "load", "num_swapped", "cause"),
    [
        ("bfloat16 takes 20 times as long", 9.0, 9999, "bfloat16 takes 20 times as long"),
        ("", 9.0, 9999, "the machine swaps"),
        ("", 9.0, 0, "other work runs on this machine (load 9, 2 of it this run's)"),
        ("", 5.0, 0, "no cause was found"),
    ],
)
def test_the_likely_cause_of_slow_steps_is_told(
    doubt: str, load: float, num_swapped: int, cause: str
) -> None:
    found = slow_step_cause(doubt=doubt, load=load, num_busy=2, num_swapped=num_swapped)
    assert found.startswith(cause)
