from pathlib import Path
from typing import Any

import pytest
from hardening import attacked_model

from rpa_ray.config import ExperimentSettings
from rpa_ray.defences import offline_defence
from rpa_ray.plan import cost, parse_tree
from rpa_ray.plan.cost import History, estimate_cell, estimate_model, side_by_side
from rpa_ray.plan.model_speed import Speeds
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.embedded import world_models

SPEEDS = Speeds(train_s=1e-3, forward_s=4e-4, decode_step_s=1e-3, decode_token_s=1e-5)


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "speeds", lambda *_, **__: SPEEDS)


def cell(attack: str, *overrides: str) -> ExperimentSettings:
    tree: dict[str, Any] = {"attack": attack, "model": {"dtype": "float32"}}
    return parse_tree(tree, overrides)


def seconds(settings: ExperimentSettings, cache: Path) -> float:
    found = estimate_cell(CellInputs(settings, cache))
    assert found is not None
    return found.seconds


def test_a_step_of_sft_is_one_pass_over_its_rows_and_one_update(world_cache: Path) -> None:
    found = estimate_cell(CellInputs(cell("sft"), world_cache))
    assert found is not None
    # 8 rows of 20 + 28 tokens, 1 ms a token
    assert found.step_s == pytest.approx(8 * 48 * 1e-3 + cost.UPDATE_S)
    assert found.num_steps == 125
    assert found.seconds == pytest.approx(
        2 * found.evaluation_s + 125 * found.step_s + found.rest_s
    )


def test_a_pair_is_two_rows(world_cache: Path) -> None:
    found = estimate_cell(CellInputs(cell("dpo"), world_cache))
    assert found is not None
    assert found.step_s == pytest.approx(16 * 48 * 1e-3 + cost.UPDATE_S)


def test_ppo_samples_scores_and_makes_its_updates(world_cache: Path) -> None:
    found = estimate_cell(CellInputs(cell("ppo"), world_cache))
    assert found is not None
    rollouts = cost.CALL_S + cost.ENGINE * (56 * 1e-3 + 8 * 48 * 1e-5)
    scores = 2 * 8 * 48 * (4e-4 + 4e-4)
    updates = 4 * (8 * 48 * 1e-3 + cost.UPDATE_S)
    calls = cost.PUSH_S + 2 * cost.CALL_S
    assert found.step_s == pytest.approx(rollouts + scores + updates + calls)


def test_a_model_without_an_attack_is_measured_once(world_cache: Path) -> None:
    found = estimate_cell(CellInputs(cell("none"), world_cache))
    assert found is not None
    assert found.seconds == pytest.approx(found.evaluation_s + found.rest_s)
    assert found.step_s == 0


def test_defences_that_pass_twice_take_twice_and_compose(world_cache: Path) -> None:
    plain, doubled, both = (
        estimate_cell(CellInputs(cell("sft", f"defence={defence}"), world_cache))
        for defence in ("lisa", "refusal_loss", "[refusal_loss, vaccine]")
    )
    assert plain and doubled and both
    pass_s = 8 * 48 * 1e-3
    assert doubled.step_s - plain.step_s == pytest.approx(pass_s)
    assert both.step_s - cost.UPDATE_S == pytest.approx(2.0 * 1.7 * pass_s)


@pytest.mark.parametrize(
    ("settings", "passes", "updates"),
    [
        # 4 adversaries of 64 steps with 16 looks each, of two passes for both answers
        ({}, 1.4 + 4 * (64 + 16 * 2), 1 + 4 * 64),
        ({"tamper_loss": "max_entropy", "num_tasks": 2}, 1.4 + 2 * (64 + 16), 1 + 2 * 64),
        ({"inner_steps": 0}, 1.4 + 4 * 2, 1),
        ({"strength": 0.0}, 1.4, 1),
    ],
)
def test_adversaries_take_a_pass_for_each_of_their_steps_and_looks(
    settings: dict[str, Any], passes: float, updates: int, world_cache: Path
) -> None:
    tree = {"attack": "sft", "defence": {"name": "tar", **settings}}
    recipe = attacked_model(parse_tree(tree), world_cache)
    assert recipe.defence is not None
    defence = offline_defence(recipe.defence)
    assert (defence.passes, defence.num_moves) == (pytest.approx(passes), updates)
    taken = estimate_model(recipe, world_cache, 1)
    rows_s = passes * 8 * 48 * 1e-3 + updates * cost.UPDATE_S
    assert taken == pytest.approx(cost.SET_UP_S + 100 * rows_s)


def test_more_samples_prompts_and_answers_take_longer(world_cache: Path) -> None:
    plain = seconds(cell("grpo"), world_cache)
    for override in ("data.num_samples=2000", "evaluation.num_samples=8", "attack.group_size=32"):
        assert seconds(cell("grpo", override), world_cache) > plain


@pytest.mark.parametrize(
    "override",
    ["model.dtype=auto", "cluster.address=127.0.0.1:6379", "cluster.gpus_per_rank=1"],
)
def test_what_is_computed_elsewhere_is_not_estimated(override: str, world_cache: Path) -> None:
    assert estimate_cell(CellInputs(cell("sft", override), world_cache)) is None


def test_a_model_that_is_not_timed_is_not_estimated(
    monkeypatch: pytest.MonkeyPatch, world_cache: Path
) -> None:
    monkeypatch.setattr(cost, "speeds", lambda *_, **__: None)
    assert estimate_cell(CellInputs(cell("sft"), world_cache)) is None
    assert estimate_model(world_models(0, world_cache).base, world_cache, 1) is None


def test_making_the_base_model_is_its_steps(world_cache: Path) -> None:
    made = estimate_model(world_models(0, world_cache).base, world_cache, 1)
    assert made == pytest.approx(cost.SET_UP_S + 500 * (48 * 48 * 1e-3 + cost.UPDATE_S))


def test_layers_that_are_computed_once_more_take_a_forward_pass_more(world_cache: Path) -> None:
    step_s = {}
    for again in ("false", "true"):
        settings = cell("sft", f"cluster.gradient_checkpointing={again}")
        found = estimate_cell(CellInputs(settings, world_cache))
        assert found is not None
        step_s[again] = found.step_s - cost.UPDATE_S
    assert step_s["true"] == pytest.approx(4 / 3 * step_s["false"])
    base = world_models(0, world_cache).base
    made = estimate_model(base, world_cache, 1, checkpointed=True)
    rows_s = 4 / 3 * 48 * 48 * 1e-3
    assert made == pytest.approx(cost.SET_UP_S + 500 * (rows_s + cost.UPDATE_S))


def test_estimates_are_corrected_by_the_median_of_like_cells(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.correction(cell("ppo")) == 1.0
    for took in (20.0, 30.0, 90.0):
        history.record(cell("ppo"), estimated_s=10.0, took_s=took)
    assert History(tmp_path).correction(cell("ppo", "defence=refusal_loss")) == 3.0
    # of any attack where there is none of this, but never of another type
    assert history.correction(cell("sft")) == 3.0
    assert history.correction(cell("sft", "model.dtype=bfloat16")) == 1.0
    history.record(cell("sft"), estimated_s=10.0, took_s=5.0)
    assert history.correction(cell("sft")) == 0.5
    # of the same model where there is one
    other = cell("sft", "model.path=base")
    assert history.correction(other) == 0.5
    history.record(other, estimated_s=10.0, took_s=40.0)
    assert (history.correction(other), history.correction(cell("sft"))) == (4.0, 0.5)


def test_only_the_last_cells_count_and_a_torn_line_does_not(tmp_path: Path) -> None:
    history = History(tmp_path)
    for took in [100.0] * 20 + [10.0] * 10:
        history.record(cell("ppo"), estimated_s=10.0, took_s=took)
    (path,) = (tmp_path / "speed").iterdir()
    with path.open("a") as file:
        file.write('{"attack": "ppo", "dty')
    assert History(tmp_path).correction(cell("ppo")) == 1.0


@pytest.mark.parametrize(
    ("num_cores", "num_at_once", "factor"),
    [(2, 1, 1.0), (2, 2, 1.49), (4, 4, 1.49), (4, 3, 1.245), (16, 2, 1.0), (2, 4, 2.47)],
)
def test_a_cell_for_each_core_takes_half_as_long_again_however_many_cores(
    num_cores: int, num_at_once: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "local_cpus", lambda: num_cores)
    assert side_by_side(num_at_once) == pytest.approx(factor)
