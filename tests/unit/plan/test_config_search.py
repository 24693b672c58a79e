"""A search as files write it: what it draws, and what is refused."""

import math
from pathlib import Path

import pytest

from rpa_ray.config import ConfigError, SweepSettings
from rpa_ray.plan import LoadedConfig, load_config
from rpa_ray.plan.points import with_points

SFT = "kind: sweep\nattack: sft\n"
RATE = "attack.learning_rate: {log: [1e-6, 1e-3]}"
RANDOM = "search: random, num_trials: 12, "
OPTUNA = "search: optuna, num_trials: 24, "


def load(folder: Path, sweep: str, *overrides: str, more: str = "") -> LoadedConfig:
    path = folder / "some.yaml"
    path.write_text(f"{SFT}sweep: {{{sweep}}}\n{more}", encoding="utf-8")
    return load_config(path, overrides)


def sweep_of(loaded: LoadedConfig) -> SweepSettings:
    assert loaded.sweep is not None
    return loaded.sweep


def refusal(folder: Path, sweep: str, *overrides: str, more: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, sweep, *overrides, more=more)
    return str(caught.value)


def test_random_points_follow_from_the_seed_alone_on_every_machine(tmp_path: Path) -> None:
    space = "data.rho: {uniform: [0, 1]}, data.num_samples: {choice: [64, 128, 256]}"
    loaded = load(tmp_path, f"search: random, num_trials: 3, {RATE}, {space}")
    assert loaded.points == (
        {"attack.learning_rate": 0.000341402, "data.rho": 0.757954, "data.num_samples": 128},
        {"attack.learning_rate": 5.98068e-06, "data.rho": 0.511275, "data.num_samples": 128},
        {"attack.learning_rate": 0.000224593, "data.rho": 0.303313, "data.num_samples": 128},
    )
    assert [cell.data.rho for cell in loaded.campaign.cells] == [0.757954, 0.511275, 0.303313]
    other = load(tmp_path, f"search: random, num_trials: 3, seed: 1, {RATE}, {space}")
    assert other.points[0] != loaded.points[0]


def test_more_random_trials_begin_with_the_fewer(tmp_path: Path) -> None:
    few, many = (load(tmp_path, f"{RANDOM}{RATE}", f"sweep.num_trials={n}") for n in (5, 40))
    assert (len(few.points), len(many.points)) == (5, 40)
    assert many.points[:5] == few.points


def test_log_draws_are_uniform_in_the_logarithm(tmp_path: Path) -> None:
    loaded = load(tmp_path, f"search: random, num_trials: 300, {RATE}")
    rates = [point["attack.learning_rate"] for point in loaded.points]
    assert all(1e-6 <= rate <= 1e-3 for rate in rates)
    by_decade = [sum(math.floor(math.log10(rate)) == d for rate in rates) for d in (-6, -5, -4)]
    assert all(70 < num < 130 for num in by_decade), by_decade


def test_a_list_is_a_choice_and_no_combination_is_drawn_twice(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "search: random, num_trials: 6, data.rho: [0, 0.5, 1], attack.name: {choice: [sft, dpo]}",
    )
    drawn = {(point["data.rho"], point["attack.name"]) for point in loaded.points}
    assert drawn == {(rho, name) for rho in (0, 0.5, 1) for name in ("sft", "dpo")}


def test_optuna_begins_with_ten_random_points(tmp_path: Path) -> None:
    optuna, random = load(tmp_path, f"{OPTUNA}{RATE}"), load(tmp_path, f"{RANDOM}{RATE}")
    assert optuna.points == random.points[:10]
    assert (len(optuna.campaign.cells), optuna.num_undrawn) == (10, 14)
    few = load(tmp_path, f"search: optuna, num_trials: 4, {RATE}")
    assert (len(few.points), few.num_undrawn) == (4, 0)


def test_a_later_point_gets_the_settings_of_the_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, f"{OPTUNA}{RATE}", "data.num_samples=32")
    later = with_points(loaded, [*loaded.points, {"attack.learning_rate": 2e-5}])
    cell = later.campaign.cells[-1].to_yaml_dict()
    assert (cell["attack"]["learning_rate"], cell["data"]["num_samples"]) == (2e-5, 32)
    assert later.num_undrawn == 13


def test_a_seed_that_is_a_list_is_swept_and_a_number_is_that_of_the_search(tmp_path: Path) -> None:
    swept = load(tmp_path, "search: random, num_trials: 2, seed: [4, 5]")
    assert {cell.seed for cell in swept.campaign.cells} == {4, 5}
    assert sweep_of(load(tmp_path, f"{RANDOM}seed: 7, {RATE}")).seed == 7


def test_a_grid_has_no_search_in_its_settings(tmp_path: Path) -> None:
    sweep = sweep_of(load(tmp_path, "data.rho: [0, 1]"))
    assert (sweep.search, sweep.num_trials, sweep.scheduler) == ("grid", None, None)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (RATE, "sweep.attack.learning_rate must be a list in a grid, got {'log': [1e-06, 0.001]}."),
        ("data.rho: {choice: [0, 1]}", "sweep.data.rho must be a list in a grid, got {'choice'"),
        (f"search: random, {RATE}", "sweep.num_trials must be 1 or more where search is random"),
        (f"search: optuna, {RATE}", "sweep.num_trials must be 1 or more where search is optuna"),
        (f"search: random, num_trials: 0, {RATE}", "sweep.num_trials must be 1 or more where"),
        (f"search: random, num_trials: x, {RATE}", "sweep.num_trials must be a valid integer"),
        (f"search: random, num_trials: 30000, {RATE}", "sweep.num_trials must make at most 20,000"),
        (
            f"search: best, num_trials: 3, {RATE}",
            "sweep.search must be 'grid', 'rand",
        ),
        ("num_trials: 3, data.rho: [0]", "sweep.num_trials must be left out in a grid, got 3."),
        (f"{RANDOM}data.rho: [0, 1]", "sweep.num_trials must be at most 2, the combinations of"),
        (
            f"{RANDOM}data.rho: 1",
            "sweep.data.rho must be a list with at least one value, or",
        ),
        (f"{RANDOM}data.rho: {{choice: []}}", "sweep.data.rho must be a list with at least"),
        (f"{RANDOM}data.rho: {{log: [0, 1]}}", "sweep.data.rho.log must ascend and be above 0"),
        (
            f"{RANDOM}data.rho: {{uniform: [1, 0]}}",
            "sweep.data.rho.uniform must ascend, got [1,",
        ),
        (f"{RANDOM}data.rho: {{uniform: [1]}}", "sweep.data.rho.uniform must be a list of two"),
        (
            f"{RANDOM}data.rho: {{uniform: [0, 2]}}",
            "sweep.data.rho must be less than or equal",
        ),
        (
            f"{RANDOM}data.rho: {{normal: [0, 1]}}",
            "sweep.data.rho must be a list with at least",
        ),
        (f"{RANDOM}data.num_samples: {{uniform: [8, 64]}}", "sweep.data.num_samples must be a val"),
        ("search: random, num_trials: 3", "sweep must vary a key, got"),
        (f"{OPTUNA}{RATE}, attack: [sft, {{name: sft}}]", "sweep.attack[0] must differ from every"),
        (f"{RANDOM}scheduler: best, {RATE}", "sweep.scheduler must be 'asha' or 'median', got"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tmp_path: Path, sweep: str, message: str) -> None:
    assert refusal(tmp_path, sweep).startswith(message)


@pytest.mark.parametrize(
    ("swept", "more", "message"),
    [
        ("data.rho: [0, 1]", "metric: valid\n", "metric is not harm, which the looks measure"),
        ("data.rho: [0, 1]", "evaluation: {num_looks: 1}\n", "a trial is not looked at on the way"),
        ("attack: [sft, none]", "", "a trial does not train"),
    ],
)
def test_a_scheduler_that_would_see_nothing_is_refused(
    tmp_path: Path, swept: str, more: str, message: str
) -> None:
    found = refusal(tmp_path, f"scheduler: asha, {swept}", more=more)
    assert found.startswith(f"sweep.scheduler must be left out where {message}, got 'asha'.")


def test_a_search_by_a_package_that_is_not_there_is_refused_before_its_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpa_ray.plan.grid.find_spec", lambda name: None)
    assert refusal(tmp_path, f"{OPTUNA}{RATE}").startswith(
        "sweep.search must be grid or random where the package optuna is not installed, got 'optuna"
    )
    assert load(tmp_path, f"{RANDOM}{RATE}").num_undrawn == 0
