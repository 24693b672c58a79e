import json
import re
from pathlib import Path

import pytest
import yaml
from checked import check_models
from hostile import every_hostile_text

from rpa_ray.campaign.summary import record, worst_checks
from rpa_ray.config import ConfigError
from rpa_ray.plan import evaluation_of, load_config, parse_tree
from rpa_ray.plan.cells import _shown_models, cell_labels, cell_name, plan_cells


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "kind": "campaign",
                "attack": {"name": "ppo", "kl_coef": 0.1},
                "cells": [
                    {"attack": "none"},
                    {"defence": "none"},
                    {"defence": {"name": "refusal_loss", "alpha": 3}},
                    {"defence": {"name": "refusal_loss", "alpha": 3}, "attack": {"kl_coef": 0.2}},
                ],
            }
        )
    )
    return path


def finish(folder: Path, settings: dict[str, object], outcome: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "evaluation.json").write_text(json.dumps(outcome))


OK: dict[str, object] = {
    "status": "ok",
    "step_failed": None,
    "weights_sha256": "ab",
    "metrics": {},
    "checks": {},
}


def test_cells_have_different_folders(config_file: Path, tmp_path: Path) -> None:
    cells = plan_cells(load_config(config_file), tmp_path)
    assert len({cell.folder for cell in cells}) == 4


def test_the_cluster_does_not_name_a_cell(config_file: Path) -> None:
    here = load_config(config_file).campaign.cells[1]
    there = load_config(config_file, ["cluster.num_ranks=2"]).campaign.cells[1]
    assert cell_name(here) == cell_name(there)


def test_other_weights_at_the_same_path_make_another_cell(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(3 * 2**20))
    first = parse_tree({"model": {"path": str(model)}})
    before = cell_name(first)
    link = tmp_path / "elsewhere"
    link.symlink_to(model)
    assert cell_name(parse_tree({"model": {"path": str(link)}}))[-8:] == before[-8:]
    for place in (0, 2 * 2**20 + 5):
        with (model / "model.safetensors").open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
        assert cell_name(first) != before
        before = cell_name(first)


def test_other_rows_anywhere_in_a_data_file_make_another_cell(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(bytes(5 * 2**20))
    settings = parse_tree({"data": {"world": "real", "path": str(data)}})
    before = cell_name(settings)
    with data.open("r+b") as file:
        file.seek(5 * 2**19)
        file.write(b"\1")
    assert cell_name(settings) != before


def test_params_tell_a_cell_from_its_neighbours(config_file: Path, tmp_path: Path) -> None:
    cells = plan_cells(load_config(config_file), tmp_path)
    assert cells[2].params["defence.alpha"] == 3
    assert cells[2].params["attack.kl_coef"] == 0.1
    assert cells[3].params["attack.kl_coef"] == 0.2
    assert "data.name" not in cells[2].params


def test_a_finished_cell_is_not_run_again(config_file: Path, tmp_path: Path) -> None:
    cell = plan_cells(load_config(config_file), tmp_path)[1]
    finish(cell.folder, cell.settings.to_yaml_dict(), OK)
    assert [c.done for c in plan_cells(load_config(config_file), tmp_path)] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "zeros", "other"])
def test_a_finished_cell_with_a_torn_record_is_run_again_and_the_record_is_named(
    config_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    cell = plan_cells(load_config(config_file), tmp_path)[1]
    finish(cell.folder, cell.settings.to_yaml_dict(), OK)
    path = cell.folder / name
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "half": content[: len(content) // 2],
            "zeros": bytes(len(content)),
            "other": b"[]",
        }.get(damage, b"")
    )
    if damage == "missing":
        path.unlink()
    for _ in range(2):
        assert not any(c.done for c in plan_cells(load_config(config_file), tmp_path))
    if (name, damage) == ("evaluation.json", "missing"):
        assert caplog.messages == []  # so begins every cell
        return
    (line,) = caplog.messages
    assert line.startswith(f"{path} must ") and "\n" not in line
    assert record(cell)["status"] == ("failed" if name == "evaluation.json" else "ok")


def test_a_failed_cell_is_run_again_and_a_broken_policy_is_not(
    config_file: Path, tmp_path: Path
) -> None:
    cells = plan_cells(load_config(config_file), tmp_path)
    finish(cells[1].folder, cells[1].settings.to_yaml_dict(), OK | {"status": "failed"})
    finish(cells[2].folder, cells[2].settings.to_yaml_dict(), OK | {"status": "sampling_failed"})
    done = [c.done for c in plan_cells(load_config(config_file), tmp_path)]
    assert done == [False, False, True, False]


def test_a_cell_without_evaluation_is_recorded_as_failed(config_file: Path, tmp_path: Path) -> None:
    found = record(plan_cells(load_config(config_file), tmp_path)[1])
    assert (found["status"], found["metrics"]) == ("failed", {})


def test_an_untouched_model_has_no_flip_ratio(config_file: Path, tmp_path: Path) -> None:
    found = record(plan_cells(load_config(config_file), tmp_path)[0])
    assert (found["attack"], found["rho"], found["num_samples"]) == ("none", None, 0)


def test_the_worst_check_of_a_campaign_is_reported(config_file: Path, tmp_path: Path) -> None:
    cells = plan_cells(load_config(config_file), tmp_path)
    for cell, f1, unflipped in ((cells[0], 0.99, 0.0), (cells[1], 0.7, 0.4)):
        checks = {
            "judge_f1": {"mean": f1},
            "reward_model_unflipped_accuracy": {"mean": unflipped},
        }
        finish(cell.folder, cell.settings.to_yaml_dict(), OK | {"checks": checks})
    assert worst_checks(cells) == {
        "judge_f1": {"mean": 0.7},
        "reward_model_unflipped_accuracy": {"mean": 0.4},
    }


def test_a_composed_defence_is_told_apart_by_the_settings_of_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "composed.yaml"
    path.write_text(
        "kind: campaign\nattack: sft\ncells:\n"
        "- {defence: [{name: lisa, rho: 3}, refusal_loss]}\n"
        "- {defence: [{name: lisa, rho: 10}, refusal_loss]}\n"
    )
    cells = plan_cells(load_config(path), tmp_path / "out")
    assert [cell.params for cell in cells] == [
        {"defence.lisa.rho": 3.0},
        {"defence.lisa.rho": 10.0},
    ]
    assert cells[0].name.startswith("chat_sft_lisa_refusal_loss_seed0_")
    assert cells[0].name != cells[1].name
    assert record(cells[0])["defence"] == "lisa+refusal_loss"


def test_a_campaign_on_validation_prompts_says_so_in_every_record(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text("kind: campaign\nattack: sft\ncells: [{}, {data: {rho: 0.5}}]\n")
    for split, told in (("validation", {"evaluation.split": "validation"}), ("test", {})):
        config = load_config(path, [f"evaluation.split={split}"])
        for cell in plan_cells(config, tmp_path / "out"):
            assert record(cell)["params"] == told


def test_an_attack_that_trains_nothing_has_the_flip_ratio_of_its_reward_model(
    tmp_path: Path,
) -> None:
    path = tmp_path / "best_of_n.yaml"
    path.write_text(
        "kind: campaign\nattack: best_of_n\ncells:\n- {data: {rho: 0.0}}\n- {data: {rho: 1.0}}\n"
    )
    cells = [record(cell) for cell in plan_cells(load_config(path), tmp_path)]
    assert [(cell["rho"], cell["num_samples"]) for cell in cells] == [(0.0, 0), (1.0, 0)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_check_without_a_value_is_the_worst(
    config_file: Path, tmp_path: Path, order: tuple[int, int]
) -> None:
    cells = plan_cells(load_config(config_file), tmp_path)
    names = ("judge_f1", "reward_model_unflipped_accuracy")
    for place, mean in zip(order, (None, 0.9), strict=True):
        checks = {name: {"mean": mean} for name in names}
        cell = cells[place]
        finish(cell.folder, cell.settings.to_yaml_dict(), OK | {"checks": checks})
    assert worst_checks(cells) == {name: {"mean": None} for name in names}


def test_cells_are_called_by_what_differs_between_them(tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(
        "kind: campaign\nattack: sft\ncells:\n- {defence: {name: lisa, rho: 3}}\n"
        "- {seed: 1, data: {rho: 0.5}}\n- {attack: none, model: {path: base}}\n"
    )
    labels = cell_labels(plan_cells(load_config(path), tmp_path))
    assert list(labels.values()) == [
        "chat sft lisa rho=1 seed=0 defence.rho=3",
        "chat sft none rho=0.5 seed=1",
        "base none rho=1 seed=0",
    ]


def test_cells_that_differ_in_nothing_else_are_called_by_their_attack_and_defence(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text("kind: campaign\ncells: [{attack: sft}, {attack: dpo, defence: freeze}]\n")
    labels = cell_labels(plan_cells(load_config(path), tmp_path))
    assert list(labels.values()) == ["sft none", "dpo freeze"]


@every_hostile_text
def test_a_cell_has_a_name_that_any_file_system_takes(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model may be called `..`: then what lies there counts.
    folder = tmp_path / "models" / "runs"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    names = [cell_name(parse_tree({"model": {"path": text}, "seed": seed})) for seed in (0, 1)]
    assert names[0] != names[1]
    for name in names:
        assert re.fullmatch(r"[\w-]+_[0-9a-f]{8}", name)
        (folder / name).mkdir()


@pytest.mark.parametrize(("num_letters", "is_cut"), [(230, False), (231, True), (255, True)])
def test_only_a_name_that_is_too_long_is_cut(num_letters: int, is_cut: bool) -> None:
    name = cell_name(parse_tree({"model": {"path": "x" * num_letters}}))
    assert len(name) == 255
    assert name.startswith("x" * min(num_letters, 246))
    assert ("_none_seed0_" not in name) == is_cut


@pytest.mark.parametrize("letter", ["x", "\u5b57"])
def test_the_output_of_an_evaluation_can_be_made(letter: str, tmp_path: Path) -> None:
    model = tmp_path / (letter * (255 // len(letter.encode())))
    model.mkdir()
    name = evaluation_of(str(model)).name
    (tmp_path / name).mkdir()
    assert name.startswith(f"evaluate-{letter * 50}")


@every_hostile_text
def test_a_model_that_is_none_is_refused_by_its_key(text: str, tmp_path: Path) -> None:
    settings = parse_tree({"model": {"path": f"a:{text}"}})
    with pytest.raises(ConfigError, match=r"^model\.path must be chat, base"):
        check_models(settings)


def test_models_are_called_by_the_last_name_of_their_folder_where_that_is_their_own(
    tmp_path: Path,
) -> None:
    llama, one, other = (tmp_path / name for name in ("models/llama", "a/chat", "b/chat"))
    for folder in (llama, one, other):
        folder.mkdir(parents=True)
    named = {str(llama): "llama", "owner/name@" + "ab" * 20: "owner/name@abababab"}
    named |= {str(one): str(one), str(other): str(other)}
    assert _shown_models(named.keys()) == named


def test_a_setting_inside_a_section_of_a_defence_is_told(tmp_path: Path) -> None:
    config = tmp_path / "one.yaml"
    adapters = {"rank": 4, "alpha": 8}
    defence = {"name": "circuit_breakers", "lora": adapters}
    config.write_text(yaml.safe_dump({"attack": "sft", "defence": defence}))
    (cell,) = plan_cells(load_config(config), tmp_path)
    assert cell.params == {f"defence.lora.{name}": value for name, value in adapters.items()}
