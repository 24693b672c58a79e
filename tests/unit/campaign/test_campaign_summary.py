"""What a campaign leaves that does not get to its end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rpa_ray.campaign import run
from rpa_ray.campaign.growing import Growing
from rpa_ray.campaign.progress import ProgressView
from rpa_ray.campaign.run import CampaignFailed, run_campaign
from rpa_ray.plan import load_config
from rpa_ray.plan.plan import make_plan
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.report import write_report
from rpa_ray.run_folder.files import write_json

CAMPAIGN = "kind: campaign\nattack: sft\ncells:\n- {seed: 0}\n- {seed: 1}\n- {seed: 2}\n"
SWEEP = "kind: sweep\nattack: sft\nsweep: {seed: [0, 1, 2]}\n"


def run_until(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    config: str,
    end: Callable[[], str],
) -> list[dict[str, Any]]:
    """Run a campaign whose first cell gets a result, and whose second begins; then it ends."""

    def work(growing: Growing, *rest: object) -> str:
        todo = growing.plan.todo
        outcome = {"status": "ok", "step_failed": None, "metrics": {}, "checks": {}}
        write_json(todo[0].folder / "evaluation.json", outcome)
        write_json(todo[1].folder / "before.json", {})
        return end()

    monkeypatch.setattr(run, "_run", work)
    monkeypatch.setattr(run, "manifest", lambda *_: {})
    path = folder / "config.yaml"
    path.write_text(config, encoding="utf-8")
    return run_campaign(
        make_plan(load_config(path), folder / "out", CampaignInputs(cache)),
        view=ProgressView(Console(quiet=True)),
        command="it",
    )


def interrupt() -> str:
    raise KeyboardInterrupt


def summary(folder: Path) -> list[tuple[int, str]]:
    records = json.loads((folder / "out" / "summary.json").read_text())
    return [(record["seed"], record["status"]) for record in records]


def test_an_interrupted_campaign_has_a_summary_of_the_cells_with_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_cache: Path
) -> None:
    write_json(tmp_path / "out" / "summary.json", ["of an earlier run"])
    with pytest.raises(KeyboardInterrupt):
        run_until(tmp_path, monkeypatch, world_cache, CAMPAIGN, interrupt)
    assert summary(tmp_path) == [(0, "ok")]
    assert "SFT" in write_report(tmp_path / "out").markdown.read_text()


def test_an_interrupted_sweep_is_left_to_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_cache: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_until(tmp_path, monkeypatch, world_cache, SWEEP, interrupt)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_cell_that_a_failed_campaign_never_finished_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_cache: Path
) -> None:
    with pytest.raises(CampaignFailed, match="the ranks died"):
        run_until(tmp_path, monkeypatch, world_cache, CAMPAIGN, lambda: "the ranks died")
    assert summary(tmp_path) == [(0, "ok")]


def test_a_cell_without_a_result_at_the_end_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_cache: Path
) -> None:
    run_until(tmp_path, monkeypatch, world_cache, CAMPAIGN, lambda: "")
    assert summary(tmp_path) == [(0, "ok"), (1, "failed"), (2, "failed")]
