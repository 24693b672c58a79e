import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ONE_RANK

import rpa_ray.jobs.experiment
from rpa_ray.actors.errors import UnusableRankError
from rpa_ray.campaign.ranks import _cause, _run_recorded
from rpa_ray.plan import load_config
from rpa_ray.recipes.to_make import Cell

PLACE: Any = SimpleNamespace(ranks=ONE_RANK)


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (tmp_path / "run.yaml").write_text("attack: none\n")
    settings = load_config(tmp_path / "run.yaml", []).campaign.cells[0]
    return Cell(name="cell", settings=settings, folder=tmp_path / "cell")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the cells that are run."""
    found: list[str] = []
    monkeypatch.setattr(
        rpa_ray.jobs.experiment, "run_experiment", lambda cell, place: found.append(cell.name)
    )
    return found


def end(cell: Cell, status: str) -> None:
    cell.folder.mkdir()
    (cell.folder / "evaluation.json").write_text(json.dumps({"status": status}))


@pytest.mark.parametrize("status", ["ok", "sampling_failed"])
def test_a_cell_whose_ranks_died_after_its_end_is_not_run_again(
    status: str, cell: Cell, runs: list[str]
) -> None:
    end(cell, status)
    (cell.folder / "checkpoints" / "step_000040").mkdir(parents=True)
    _run_recorded(cell, PLACE)
    assert runs == []
    # they hold the weights of an attacked model
    assert [path.name for path in cell.folder.iterdir()] == ["evaluation.json"]


def test_a_cell_that_failed_or_did_not_begin_is_run(cell: Cell, runs: list[str]) -> None:
    _run_recorded(cell, PLACE)
    end(cell, "failed")
    _run_recorded(cell, PLACE)
    assert runs == ["cell", "cell"]


def test_a_rank_that_is_unusable_ends_and_leaves_its_cell_to_the_next(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_experiment(cell: Cell, place: object) -> None:
        raise error

    monkeypatch.setattr(rpa_ray.jobs.experiment, "run_experiment", run_experiment)
    error: Exception = UnusableRankError("stuck")
    with pytest.raises(UnusableRankError):
        _run_recorded(cell, PLACE)
    assert not cell.folder.exists()
    error = RuntimeError("broken")
    _run_recorded(cell, PLACE)
    assert json.loads((cell.folder / "evaluation.json").read_text())["status"] == "failed"


def test_ranks_that_failed_name_the_cause_before_what_ray_says() -> None:
    from ray.train import TrainingFailedError

    class OfRanks(TrainingFailedError):  # as Ray Train raises it
        worker_failures = {1: KeyError("later"), 0: ValueError("x must be y\nlog")}  # noqa: RUF012

    assert _cause(OfRanks("Training failed")) == "ValueError: x must be y"
    assert (
        _cause(TrainingFailedError("Training failed due to controller error:\nno GPU")) == "no GPU"
    )
