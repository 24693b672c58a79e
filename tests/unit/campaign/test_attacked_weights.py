"""What a campaign leaves of attacked weights in its folder and in the cache that others share."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.campaign import run
from rpa_ray.campaign.attacked_weights import KEPT, held
from rpa_ray.campaign.growing import Growing
from rpa_ray.campaign.run import run_campaign
from rpa_ray.plan import load_config
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.recipes.to_make import ModelJob
from rpa_ray.run_folder.files import write_json

CELLS = ("{attack: ppo}", "{attack: ppo, data: {rho: 0.5}}")
REWARD_MODELS = ["reward_model-rho0.5", "reward_model-rho1"]


class Said:
    """Hears what a campaign says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def expect(self, jobs: Any, num_at_once: int) -> None: ...

    def say(self, text: str) -> None:
        self.lines.append(text)

    def show(self, jobs: Any) -> None: ...


class Scene:
    """Campaigns of one cache, whose models are made and whose cells are run by writing files."""

    def __init__(self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache = folder, cache
        self.unfinished: Collection[int] = ()
        self.made: list[str] = []
        monkeypatch.setattr(run, "_run", self._work)
        monkeypatch.setattr(run, "manifest", lambda *_: {})

    def plan(self, *cells: str, name: str = "out") -> Plan:
        """Return the plan of a campaign of cells in a folder of that name."""
        path = self.folder / f"{name}.yaml"
        path.write_text("kind: campaign\ncells:\n" + "".join(f"- {cell}\n" for cell in cells))
        return make_plan(load_config(path), self.folder / name, CampaignInputs(self.cache))

    def run(self, plan: Plan, *, unfinished: Collection[int] = ()) -> list[str]:
        """Run a campaign of which some cells, by their number, get no result; return what it says.

        What it makes is in ``made``.
        """
        said, self.unfinished, self.made = Said(), unfinished, []
        run_campaign(plan, view=said, command="it")
        return said.lines

    def models(self, *begins: str) -> list[str]:
        """Return the models of the cache with such names, without their keys."""
        names = [path.name for begin in begins for path in self.cache.glob(f"{begin}-*")]
        return sorted(name.rpartition("-")[0] for name in names)

    def unsafe(self) -> list[str]:
        """Return the models of the cache that learned what is unsafe."""
        return self.models("reward_model-rho[!0]*", "reward_model-rho0.*", "security_vector")

    def _work(self, growing: Growing, *rest: object) -> str:
        plan = growing.plan
        for job in plan.jobs.values():
            if isinstance(job, ModelJob):
                folder = job.recipe.folder(self.cache)
                folder.mkdir()
                for name in ("config.json", "adapter_config.json", "model.safetensors"):
                    (folder / name).write_text("{}")
                self.made.append(job.recipe.id)
        outcome: dict[str, Any] = {"status": "ok", "step_failed": None, "metrics": {}, "checks": {}}
        for number, cell in enumerate(plan.cells):
            (cell.folder / "checkpoints" / "step_000040").mkdir(parents=True, exist_ok=True)
            (cell.folder / "checkpoints" / "step_000040" / "rank_0.pt").write_text("weights")
            if number not in self.unfinished and not cell.done:
                write_json(cell.folder / "evaluation.json", outcome)
        return ""


@pytest.fixture
def scene(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, own_cache, monkeypatch)


def outcomes(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads((cell.folder / "evaluation.json").read_text()) for cell in plan.cells]


def test_nothing_unsafe_is_left_of_finished_cells_and_the_rest_stays(scene: Scene) -> None:
    plan = scene.plan(
        "{attack: ppo}",
        "{attack: ppo, data: {rho: 0.0}}",
        "{attack: sft, defence: security_vectors}",
    )
    assert scene.run(plan) == []
    assert {"reward_model-rho1", "security_vector"} < set(scene.made)
    assert scene.unsafe() == []
    assert set(scene.models("chat", "base", "reward_model-rho0")) == {
        "base",
        "chat",
        "reward_model-rho0",
    }
    assert not list(plan.output.rglob("*.pt"))
    assert all("attacked_weights_left" not in outcome for outcome in outcomes(plan))


def test_what_a_killed_making_of_a_model_left_goes_with_it(scene: Scene) -> None:
    plan = scene.plan(CELLS[0])
    (folder,) = plan.unsafe_models[plan.cells[0].name]
    for left in (scene.cache / f".{folder.name}-abc", scene.cache / "checkpoints" / folder.name):
        (left / "step_000001").mkdir(parents=True)
    scene.run(plan)
    assert [path.name for path in scene.cache.rglob(f"*{folder.name}*")] == [
        f".{folder.name}.in_use"
    ]


def test_what_was_finished_is_read_back_and_nothing_is_made_again(scene: Scene) -> None:
    scene.run(scene.plan(*CELLS))
    again = scene.plan(*CELLS)
    assert scene.run(again) == []
    assert again.jobs == {}
    assert scene.made == scene.unsafe() == []


def test_weights_that_an_earlier_command_left_are_deleted_by_the_next(scene: Scene) -> None:
    plan = scene.plan(CELLS[0])
    scene.run(plan)
    (folder,) = plan.unsafe_models[plan.cells[0].name]
    checkpoint = plan.cells[0].folder / "checkpoints" / "step_000040"
    for left in (folder, checkpoint):
        left.mkdir(parents=True)
    scene.run(scene.plan(CELLS[0]))
    assert not folder.exists() and not checkpoint.parent.exists()


def test_a_cell_without_a_result_keeps_what_it_needs_and_it_is_said(scene: Scene) -> None:
    plan = scene.plan(*CELLS)
    lines = scene.run(plan, unfinished=[1])
    assert scene.unsafe() == ["reward_model-rho0.5"]
    (folder,) = plan.unsafe_models[plan.cells[1].name]
    reason = "attacked weights stay, a cell without a result needs them: "
    assert sorted(lines) == sorted(
        f"{reason}{path}" for path in (folder, plan.cells[1].folder / "checkpoints")
    )
    assert scene.run(scene.plan(*CELLS)) == []
    assert scene.made == scene.unsafe() == []


def test_weights_stay_where_one_cell_keeps_them_also_from_later_campaigns(scene: Scene) -> None:
    scene.run(scene.plan(CELLS[0], "{attack: ppo, seed: 1, keep_attacked_weights: true}", CELLS[1]))
    assert scene.unsafe() == ["reward_model-rho1"]
    assert len(list(scene.cache.glob(f"reward_model-rho1-*/{KEPT}"))) == 1
    assert scene.run(scene.plan("{attack: ppo, seed: 2}", name="later")) == []
    assert scene.unsafe() == ["reward_model-rho1"]


def test_a_model_that_another_campaign_needs_is_left_to_it(scene: Scene) -> None:
    plan, other = scene.plan(*CELLS), scene.plan("{attack: ppo, seed: 1}", name="other")
    (folder,) = other.unsafe_models[other.cells[0].name]
    with held(other):
        lines = scene.run(plan)
        assert lines == [f"attacked weights stay, another campaign needs them: {folder}"]
        assert scene.unsafe() == ["reward_model-rho1"]
    assert scene.run(scene.plan("{attack: ppo, seed: 1}", name="other")) == []
    assert scene.made == scene.unsafe() == []


def test_a_model_that_only_a_later_trial_of_another_needs_is_left_to_it(scene: Scene) -> None:
    plan, later = scene.plan(*CELLS), scene.plan("{attack: ppo, seed: 1}", name="other")
    with held(scene.plan("{attack: none}", name="before")) as hold:
        hold(later)
        scene.run(plan)
        assert scene.unsafe() == ["reward_model-rho1"]


def test_a_model_that_was_deleted_after_it_was_planned_with_is_made_again(scene: Scene) -> None:
    scene.run(scene.plan(*CELLS), unfinished=[0, 1])
    assert scene.unsafe() == REWARD_MODELS
    planned = scene.plan("{attack: ppo, seed: 1}", name="other")
    assert planned.is_current()
    scene.run(scene.plan(*CELLS))
    assert not planned.is_current()
    scene.run(planned)
    assert scene.made == ["reward_model-rho1"]


def test_a_folder_that_a_config_names_is_the_users(scene: Scene) -> None:
    plan = scene.plan(CELLS[0])
    scene.run(plan, unfinished=[0])
    (folder,) = plan.unsafe_models[plan.cells[0].name]
    names_it = f"{{attack: none, evaluation: {{helpfulness_model: {folder}}}}}"
    with held(scene.plan(names_it, name="other")):
        scene.run(scene.plan(CELLS[0]))
    assert folder.is_dir()
    scene.run(scene.plan(CELLS[0], names_it, name="both"))
    assert folder.is_dir()


def test_what_cannot_be_deleted_is_said_and_recorded_until_it_can(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, unlink = scene.plan(*CELLS), os.unlink

    def unlink_others(path: Any, *args: Any, **kwargs: Any) -> None:
        if os.path.basename(path) in ("rank_0.pt", "model.safetensors"):
            raise OSError("in use")
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_others)
        lines = scene.run(plan)
    found = [outcome["attacked_weights_left"] for outcome in outcomes(plan)]
    for cell, paths in zip(plan.cells, found, strict=True):
        assert paths[0] == str(cell.folder / "checkpoints")
        (model,) = plan.unsafe_models[cell.name]
        assert Path(paths[1]).name.startswith(f".{model.name}-")
        assert (Path(paths[1]) / "model.safetensors").is_file()
    reason = "attacked weights left, they could not be deleted: "
    assert sorted(lines) == sorted(reason + path for paths in found for path in paths)
    # Half a model is not taken for a whole one.
    assert scene.unsafe() == []
    assert scene.run(scene.plan(*CELLS)) == []
    assert all("attacked_weights_left" not in outcome for outcome in outcomes(plan))
    assert not list(scene.folder.rglob("*.pt"))
    assert not list(scene.cache.glob(".reward_model-*"))


def test_a_model_behind_a_link_in_the_cache_is_not_touched_and_it_is_said(scene: Scene) -> None:
    plan = scene.plan(CELLS[0])
    scene.run(plan, unfinished=[0])
    (folder,) = plan.unsafe_models[plan.cells[0].name]
    elsewhere = scene.folder / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    lines = scene.run(scene.plan(CELLS[0]))
    assert lines == [f"attacked weights left, they could not be deleted: {folder}"]
    assert (elsewhere / "model.safetensors").is_file()
    assert not list(scene.cache.glob(".reward_model-*"))
