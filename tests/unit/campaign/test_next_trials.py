"""How a search begins its trials on Tune, and which of them a scheduler stops."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from rpa_ray.campaign import search, study
from rpa_ray.campaign.queue import JobQueue
from rpa_ray.campaign.search import NextTrials, scheduler_of
from rpa_ray.campaign.trial import HARM_AT_LOOK, LOOK, RUN
from rpa_ray.config import SweepSettings
from rpa_ray.plan import LoadedConfig, load_config
from rpa_ray.plan.points import with_points

RATE = "attack.learning_rate"
LOOK_AT = {"samples": 8.0}
SEARCH = f"""
kind: sweep
attack: sft
sweep: {{search: optuna, num_trials: 12, {RATE}: {{log: [1.0e-6, 1.0e-3]}}}}
"""


class Trial:
    """One of Tune's, as its schedulers see it."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.status = str(number), "RUNNING"


class Scene:
    """A search of twelve trials, of which ten are known, in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "rate.yaml").write_text(SEARCH)
        self.folder = folder
        self.queue = JobQueue({}, is_judged=True)
        self.asked: list[int] = []
        self.growing: Any = SimpleNamespace(plan=self.plan_of(load_config(folder / "rate.yaml")))
        self.growing.add = lambda longer, queue: setattr(self.growing, "plan", longer)
        monkeypatch.setattr(search, "ask", lambda queue, name, *a: getattr(queue, name)(*a))
        monkeypatch.setattr(search, "with_trial", self.with_trial)
        monkeypatch.setattr(study, "next_point", self.next_point)
        self.trials = NextTrials(self.queue, self.growing)

    def plan_of(self, config: LoadedConfig) -> Any:
        names = [f"cell{i}" for i, _ in enumerate(config.points)]
        cells = [SimpleNamespace(name=name, folder=self.folder / name) for name in names]
        return SimpleNamespace(config=config, cells=cells, output=self.folder)

    def with_trial(self, plan: Any, point: dict[str, Any]) -> Any:
        return self.plan_of(with_points(plan.config, [*plan.config.points, point]))

    def next_point(self, sweep: SweepSettings, tried: list[Any]) -> dict[str, Any]:
        self.asked.append(len(tried))
        return {RATE: len(tried) * 1e-5}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_points_that_are_known_come_before_those_that_follow_from_results(scene: Scene) -> None:
    known = scene.growing.plan.config.points
    given = [scene.trials.suggest(f"trial{i}") for i in range(12)]
    assert [one[RUN] for one in given] == [f"cell{i}" for i in range(12)]
    assert [one[RATE] for one in given] == [*(p[RATE] for p in known), 10 * 1e-5, 11 * 1e-5]
    assert scene.asked == [10, 11]
    assert scene.growing.plan.config.num_undrawn == 0


def test_a_point_is_written_down_before_its_trial_begins(scene: Scene) -> None:
    written: list[bool] = []
    add = scene.growing.add

    def added(longer: Any, queue: Any) -> None:
        written.append((scene.folder / "search.json").is_file())
        add(longer, queue)

    scene.growing.add = added
    for i in range(11):
        scene.trials.suggest(f"trial{i}")
    assert written == [True]


def test_a_cell_whose_trial_has_ended_is_stopped_at_its_next_look(scene: Scene) -> None:
    for trial in ("a", "b"):
        scene.trials.suggest(trial)
    scene.trials.on_trial_complete("b", {"harm": 0.1})
    assert scene.queue.judge("cell1", [LOOK_AT]) is True
    assert scene.queue.judge("cell0", [LOOK_AT]) is None


def test_a_cell_whose_trial_tune_has_lost_runs_to_its_end(scene: Scene) -> None:
    scene.trials.suggest("a")
    scene.trials.on_trial_complete("a", error=True)
    assert scene.queue.judge("cell0", [LOOK_AT]) is False


def decisions(name: str, mode: str, trials: list[list[float]]) -> list[list[str]]:
    """Return what a scheduler says at each look of trials that run one after the other."""
    sweep = SweepSettings.model_validate({"grid": {}, "scheduler": name, "mode": mode})
    scheduler = scheduler_of(sweep, num_looks=4)
    assert scheduler is not None
    told: list[list[str]] = []
    for number, harms in enumerate(trials):
        trial: Any = Trial(number)
        runner: Any = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
        scheduler.on_trial_add(runner, trial)
        told.append([])
        result: dict[str, Any] = {}
        for look, harm in enumerate(harms, start=1):
            result = {LOOK: look, HARM_AT_LOOK: harm}
            told[-1].append(scheduler.on_trial_result(runner, trial, result))
            if told[-1][-1] == TrialScheduler.STOP:
                break
        scheduler.on_trial_complete(runner, trial, result)
    return told


GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_asha_stops_what_is_not_in_the_better_half_at_a_look() -> None:
    trials = [[0.5, 0.5, 0.5, 0.5], [0.1, 0.5, 0.5, 0.5], [0.9, 0.4, 0.5, 0.5]]
    assert decisions("asha", "max", trials) == [[GO_ON] * 4, [STOP], [GO_ON, STOP]]
    assert decisions("asha", "min", trials) == [[GO_ON] * 4, [GO_ON] * 4, [STOP]]


def test_asha_decides_after_looks_one_two_and_four() -> None:
    at_the_third = [[0.5] * 4, [0.5, 0.5, 0.1, 0.5]]
    assert decisions("asha", "max", at_the_third) == [[GO_ON] * 4] * 2


def test_the_median_rule_stops_what_is_worse_than_the_others_and_puts_none_aside() -> None:
    trials = [[0.5] * 4] * 3 + [[0.4, 0.4, 0.4, 0.4], [0.1, 0.6, 0.6, 0.6]]
    assert decisions("median", "max", trials) == [[GO_ON] * 4] * 3 + [[STOP], [STOP]]
    assert decisions("median", "min", trials)[3:] == [[GO_ON] * 4] * 2


def test_a_trial_that_broke_without_a_look_spoils_nobodys_median() -> None:
    trials = [[0.5] * 4] * 3
    sweep = SweepSettings.model_validate({"grid": {}, "scheduler": "median"})
    scheduler = scheduler_of(sweep, num_looks=4)
    assert scheduler is not None
    broken: Any = Trial(-1)
    runner: Any = SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(runner, broken)
    last = {LOOK: 0, HARM_AT_LOOK: 0.0}
    assert scheduler.on_trial_result(runner, broken, last) == GO_ON
    scheduler.on_trial_complete(runner, broken, last)
    for number, harms in enumerate(trials):
        trial: Any = Trial(number)
        for look, harm in enumerate(harms, start=1):
            told = {LOOK: look, HARM_AT_LOOK: harm}
            assert scheduler.on_trial_result(runner, trial, told) == GO_ON


def test_without_a_scheduler_nothing_is_stopped() -> None:
    assert scheduler_of(SweepSettings(grid={}), num_looks=4) is None
