"""Where a search by Optuna looks next, from what its run folders say."""

import math
from typing import Any

import pytest

from rpa_ray.campaign.study import Tried, next_point
from rpa_ray.config import SweepSettings

RATE = "attack.learning_rate"
LOG = {"scale": "log", "low": 1e-6, "high": 1e-2}
CHOICES = {"data.rho": [0.0, 0.5, 1.0], "attack": ["sft", {"name": "dpo", "beta": 0.1}]}


def sweep_of(grid: dict[str, Any] | None = None, **more: Any) -> SweepSettings:
    given = {"grid": grid or {RATE: LOG}, "search": "optuna", "num_trials": 60}
    return SweepSettings.model_validate(given | more)


def ok(harm: float | None, **metrics: float) -> dict[str, Any]:
    means = ({} if harm is None else {"harm": harm}) | metrics
    found = {name: {"mean": mean, "n": 4} for name, mean in means.items()}
    return {"status": "ok", "metrics": found, "looks": []}


def stopped(*harms: float) -> dict[str, Any]:
    looks = [{"samples": 8.0 * i, "held_out/harm": harm} for i, harm in enumerate(harms)]
    return {"status": "stopped", "metrics": {}, "looks": looks}


def harm_of(rate: float) -> float:
    """Return harm that is largest at a rate of 1e-3."""
    return 1.0 / (1.0 + (4.0 * math.log10(rate / 1e-3)) ** 2)


def study(sweep: SweepSettings, num: int) -> list[Tried]:
    tried: list[Tried] = [(point, ok(harm_of(point[RATE]))) for point in sweep.points()]
    while len(tried) < num:
        point = next_point(sweep, tried)
        tried.append((point, ok(harm_of(point[RATE]))))
    return tried


def test_later_points_are_nearer_to_the_best_than_random_ones() -> None:
    points = [point[RATE] for point, _ in study(sweep_of(), 30)]
    assert all(1e-6 <= rate <= 1e-2 for rate in points)
    harms = list(map(harm_of, points))
    assert sum(harms[20:]) / 10 > 1.5 * sum(harms[:10]) / 10


def test_the_same_results_give_the_same_point_whenever_it_is_asked_for() -> None:
    sweep = sweep_of()
    tried = study(sweep, 14)
    assert study(sweep, 15)[:14] == tried
    assert next_point(sweep, tried) == next_point(sweep, tried)
    assert next_point(sweep, tried) != next_point(sweep_of(seed=1), tried)


def test_the_least_is_looked_for_where_the_best_is_the_least() -> None:
    tried: list[Tried] = [(point, ok(point[RATE])) for point in sweep_of().points()]
    most, least = (next_point(sweep_of(mode=mode), tried)[RATE] for mode in ("max", "min"))
    assert least < 1e-4 < most


def test_choices_are_those_of_the_file_and_none_is_tried_twice() -> None:
    sweep = sweep_of(CHOICES, num_trials=6)
    tried: list[Tried] = []
    for _ in range(6):
        tried.append((next_point(sweep, tried), ok(0.5)))
    found = [(point["data.rho"], str(point["attack"])) for point, _ in tried]
    assert sorted(found) == sorted(
        (rho, str(a)) for rho in (0.0, 0.5, 1.0) for a in CHOICES["attack"]
    )


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        stopped(0.1, 0.2),
        {"status": "failed", "metrics": {}},
        {"status": "sampling_failed", "metrics": {}, "looks": []},
        ok(None),
    ],
    ids=["open", "stopped", "failed", "broken", "no metric"],
)
def test_what_has_no_result_does_not_count_as_one(outcome: dict[str, Any] | None) -> None:
    sweep = sweep_of()
    tried = study(sweep, 12)
    found = next_point(sweep, [*tried, ({RATE: 2e-6}, outcome)])
    as_best = next_point(sweep, [*tried, ({RATE: 2e-6}, ok(1.0))])
    assert found[RATE] != as_best[RATE]


def test_a_stopped_trial_stands_behind_those_that_ended() -> None:
    sweep = sweep_of()
    low: list[Tried] = [({RATE: 1e-6 * (1 + i / 20)}, ok(0.1)) for i in range(10)]
    high: list[Tried] = [({RATE: 5e-3 * (1 + i / 20)}, stopped(0.1, 0.9, 0.9)) for i in range(10)]
    assert next_point(sweep, [*low, *high])[RATE] < 1e-4


def test_without_an_oracle_it_is_the_judge_that_is_learned_from() -> None:
    sweep = sweep_of()
    tried = study(sweep, 12)
    judged = [(p, ok(None, harm_fluent=harm_of(p[RATE]))) for p, _ in tried]
    assert next_point(sweep, judged) == next_point(sweep, tried)
