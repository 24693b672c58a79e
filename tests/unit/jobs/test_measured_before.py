"""Cells that start alike are measured once, others each; a resumed run reads its own."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rpa_ray.actors.scoring import ScorerSpec
from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.measure import Measurement
from rpa_ray.evaluation.statistics import Estimate
from rpa_ray.jobs import before
from rpa_ray.jobs.clock import Clock
from rpa_ray.plan import load_config
from rpa_ray.run_folder.files import JsonLines
from rpa_ray.run_folder.names import ANSWERS_BEFORE, BEFORE, CHECKPOINTS, SAMPLES

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
HARM = Estimate(mean=0.25, n=4, ci_low=0.0, ci_high=0.5)
ANSWER = Answer(
    decoding=Decoding.SAMPLED,
    prompt_index=0,
    sample=0,
    item="a",
    prompt="How?",
    text="So.",
    num_tokens=2,
    policy_version=1,
    harm=0.25,
)


class Campaign:
    """Stands in for the processes of a campaign; counts how often a model is measured."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.num_measured = 0
        self.scorers = {"judge": ScorerSpec(path="judge", kind="reward", template="{answer}")}
        monkeypatch.setattr(before, "measure_model", self._measure)
        monkeypatch.setattr(before, "scorer_specs", lambda *given: dict(self.scorers))
        monkeypatch.setattr(before, "check_instruments", lambda assembly: {})
        monkeypatch.setattr(before, "fluency_limit", lambda assembly: 30.0)

    def _measure(self, assembly: Any, *, phase: str, fluency_limit: float) -> Measurement:
        self.num_measured += 1
        return Measurement(metrics={"harm": HARM}, answers=[ANSWER], samples=[{"phase": phase}])

    def cell(
        self, name: str, *, weight: str = "0f", untouched: str | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Measure before the attack of a cell; return what is known then."""
        (settings,) = (
            cell
            for cell in load_config(QUICKSTART).campaign.cells
            if (cell.attack.name, cell.defence.name) == ("ppo", changes.pop("defence", "none"))
        )
        settings = settings.model_copy(update=changes)
        process = SimpleNamespace(
            cache=self.folder / "cache",
            progress=SimpleNamespace(enter=lambda *given: None),
            ranks=SimpleNamespace(is_main=True, broadcast=lambda value: value),
        )
        assembly: Any = SimpleNamespace(
            cell=SimpleNamespace(name=name, folder=self.folder / name),
            process=process,
            settings=settings,
            path="chat",
            num_steps=125,
            models=SimpleNamespace(security_vector=None, untouched=untouched),
            push_verified=lambda: {"weight": weight},
        )
        samples = JsonLines(self.folder / name / SAMPLES, enabled=True)
        found = before.measure_before(assembly, samples, Clock())
        samples.close()
        return found


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    return Campaign(tmp_path, monkeypatch)


def test_cells_that_start_alike_are_measured_once(campaign: Campaign) -> None:
    first = campaign.cell("undefended")
    second = campaign.cell("defended", defence="refusal_loss")
    assert campaign.num_measured == 1
    assert first["metrics"] == second["metrics"] == {"harm": first["metrics"]["harm"]}
    for name in ("undefended", "defended"):
        run = campaign.folder / name
        assert json.loads((run / BEFORE).read_text())["metrics"]["harm"]["mean"] == 0.25
        assert json.loads((run / SAMPLES).read_text()) == {"phase": "before"}
    answers = [
        (campaign.folder / n / ANSWERS_BEFORE).read_bytes() for n in ("undefended", "defended")
    ]
    assert answers[0] == answers[1]


def test_other_weights_seeds_and_instruments_are_measured_each(campaign: Campaign) -> None:
    campaign.cell("plain")
    campaign.cell("hardened", weight="1e")
    campaign.cell("hardened from another", weight="1e", untouched="base")
    campaign.cell("other seed", seed=1)
    campaign.scorers["judge"] = replace(campaign.scorers["judge"], path="another")
    campaign.cell("other judge")
    assert campaign.num_measured == 5


def test_a_measurement_that_was_cut_off_is_made_again(campaign: Campaign) -> None:
    campaign.cell("first")
    (kept,) = campaign.folder.glob(".before/*/" + BEFORE)
    kept.unlink()
    campaign.cell("second")
    assert campaign.num_measured == 2


@pytest.mark.parametrize("content", ["", '{"metrics": {"ha'])
def test_a_record_that_is_torn_is_measured_again(campaign: Campaign, content: str) -> None:
    campaign.cell("run")
    own, (shared,) = campaign.folder / "run" / BEFORE, campaign.folder.glob(".before/*/" + BEFORE)
    own.write_text(content)
    assert campaign.cell("run")["metrics"]["harm"]["mean"] == 0.25
    assert campaign.num_measured == 1
    own.write_text(content)
    shared.write_text(content)
    assert campaign.cell("run")["metrics"]["harm"]["mean"] == 0.25
    assert campaign.num_measured == 2
    assert json.loads(own.read_text())["metrics"]["harm"]["mean"] == 0.25


def test_a_run_that_is_resumed_reads_its_own(campaign: Campaign) -> None:
    run = campaign.folder / "run"
    known = campaign.cell("run")
    (run / CHECKPOINTS).mkdir()
    with (run / SAMPLES).open("a") as file:
        file.write('{"phase": "attack"}\n')
    again = campaign.cell("run", weight="of the attack")
    assert campaign.num_measured == 1
    assert again["metrics"] == known["metrics"]
    assert len((run / SAMPLES).read_text().splitlines()) == 1
