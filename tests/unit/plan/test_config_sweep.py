from pathlib import Path

import pytest

from rpa_ray.config import ConfigError
from rpa_ray.plan import LoadedConfig, load_config

PPO = "kind: sweep\nattack: ppo\n"


def load(folder: Path, text: str, *overrides: str) -> LoadedConfig:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_the_trials_are_the_product_of_the_values(tmp_path: Path) -> None:
    text = PPO + "sweep:\n  attack.kl_coef: [0.1, 1]\n  data.rho: [0.0, 0.5, 1.0]\n"
    loaded = load(tmp_path, text, "data.num_samples=16")
    cells = [cell.to_yaml_dict() for cell in loaded.campaign.cells]
    assert [(cell["attack"]["kl_coef"], cell["data"]["rho"]) for cell in cells] == [
        (0.1, 0.0),
        (0.1, 0.5),
        (0.1, 1.0),
        (1.0, 0.0),
        (1.0, 0.5),
        (1.0, 1.0),
    ]
    assert {cell["data"]["num_samples"] for cell in cells} == {16}
    assert loaded.kind == "sweep"


def test_the_cells_are_in_the_order_of_the_points(tmp_path: Path) -> None:
    text = PPO + "sweep: {attack.kl_coef: [0.5, 0.1], seed: [3, 1]}\n"
    loaded = load(tmp_path, text)
    assert loaded.sweep is not None
    cells = [cell.to_yaml_dict() for cell in loaded.campaign.cells]
    assert loaded.sweep.points() == [
        {"attack.kl_coef": cell["attack"]["kl_coef"], "seed": cell["seed"]} for cell in cells
    ]


def test_a_whole_plugin_is_laid_before_a_key_of_it(tmp_path: Path) -> None:
    text = (
        "kind: sweep\nattack: dpo\nsweep:\n  attack.learning_rate: [1e-4]\n  attack: [sft, ppo]\n"
    )
    cells = load(tmp_path, text).campaign.cells
    assert [(c.attack.name, c.to_yaml_dict()["attack"]["learning_rate"]) for c in cells] == [
        ("sft", 1e-4),
        ("ppo", 1e-4),
    ]


def test_the_best_trial_is_the_most_harmful_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    grid = "sweep: {seed: [1, 2]}\n"
    default, own = (
        load(tmp_path, PPO + grid + more).sweep for more in ("", "metric: valid\nmode: min\n")
    )
    assert default is not None and own is not None
    assert (default.metric, default.mode) == ("harm", "max")
    assert (own.metric, own.mode) == ("valid", "min")


@pytest.mark.parametrize(
    ("grid", "mode"),
    [
        ("defence.alpha: [1, 2]", "min"),
        ("defence: [none, refusal_loss]", "min"),
        ("attack.kl_coef: [1, 2], defence.alpha: [1, 2]", "min"),
        ("attack.kl_coef: [1, 2]", "max"),
    ],
)
def test_the_best_of_defences_is_the_least_harmful(tmp_path: Path, grid: str, mode: str) -> None:
    text = "kind: sweep\nattack: ppo\ndefence: refusal_loss\nsweep: {" + grid + "}\n"
    sweeps = [load(tmp_path, text + more).sweep for more in ("", "mode: max\n")]
    assert [sweep.mode for sweep in sweeps if sweep is not None] == [mode, "max"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep must be a mapping of dotted keys to lists, got None. Write `sweep: {attack."),
        ("sweep: []\n", "sweep must be a mapping of dotted keys to lists, got []."),
        ("sweep: {}\n", "sweep must be a mapping of dotted keys to lists, got {}."),
        ("sweep: {seed: 1}\n", "sweep.seed must be a list with at least one value, got 1."),
        ("sweep: {seed: []}\n", "sweep.seed must be a list with at least one value, got []."),
        ("sweep: {attack: {kl_coef: [1]}}\n", "sweep.attack must be a list with at least one"),
        ("sweep: {seed: [1, 2, 1]}\n", "sweep.seed must hold each value once, got [1, 2, 1]."),
        ("sweep: {data.rho: [0.5, 2]}\n", "sweep.data.rho must be less than or equal to 1, got 2."),
        ("sweep: {attack: [ppo, pppo]}\n", "sweep.attack must name one of ["),
        ("sweep: {attack: [{name: dpo, beta: 0}]}\n", "sweep.attack.beta must be greater than 0"),
        ("sweep: {seed: [0]}\ndata: {rho: 2}\n", "data.rho must be less than or equal to 1"),
        (
            "sweep: {attack: [ppo, {name: ppo}]}\n",
            "sweep[1] must differ from every other cell, got 'the settings and the seed of sweep",
        ),
        ("sweep: {cluster.num_ranks: [1, 2]}\n", "sweep[1].cluster must be that of every cell"),
        ("sweep: {seed: [0]}\nmetric: 3\n", "metric must be a valid string, got 3."),
        ("sweep: {seed: [0]}\nmode: best\n", "mode must be 'max' or 'min', got 'best'."),
        ("sweep: {seed: [0]}\ncells: [{}]\n", "cells must stand in a campaign, got [{}]."),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, PPO + text).startswith(message)


def test_a_swept_key_that_no_plugin_knows_is_refused_with_the_nearest(tmp_path: Path) -> None:
    found = refusal(tmp_path, PPO + "sweep: {attack.kl_coeff: [0.1, 1]}\n")
    assert found.startswith("sweep.attack.kl_coeff must be a known key, got")
    assert "Did you mean 'kl_coef'?" in found


@pytest.mark.parametrize("key", ["sweep", "metric", "mode"])
@pytest.mark.parametrize("kind", ["run", "campaign"])
def test_the_keys_of_a_sweep_stand_in_no_other_kind(tmp_path: Path, kind: str, key: str) -> None:
    found = refusal(tmp_path, f"kind: {kind}\n{key}: x\n")
    assert found == f"{key} must stand in a sweep, got 'x'. Write `kind: sweep`."


@pytest.mark.parametrize("override", ["attack.kl_coef=0.5", "attack.kl_coef=[0.5]"])
def test_an_override_of_a_swept_key_is_refused(tmp_path: Path, override: str) -> None:
    found = refusal(tmp_path, PPO + "sweep: {attack.kl_coef: [0.1, 1]}\n", override)
    assert found.startswith(
        "--set must name a key that is not swept (sweep.attack.kl_coef is [0.1, 1]), got 'attack."
    )


def test_a_group_of_which_one_key_is_swept_may_be_overridden(tmp_path: Path) -> None:
    loaded = load(tmp_path, PPO + "sweep: {attack.kl_coef: [0.1, 1]}\n", "attack=grpo")
    attacks = [cell.to_yaml_dict()["attack"] for cell in loaded.campaign.cells]
    assert [(attack["name"], attack["kl_coef"]) for attack in attacks] == [
        ("grpo", 0.1),
        ("grpo", 1),
    ]
