"""The report of a search: best so far, parallel coordinates, and what was stopped."""

import csv
import json
import re
from pathlib import Path

import pytest
from report_folders import Json, campaign_folder, record

from rpa_ray.config import SweepSettings
from rpa_ray.report import write_report
from rpa_ray.report.read.folder import read_campaign
from rpa_ray.report.sections import header
from rpa_ray.report.tables.response import best_text, response_section
from rpa_ray.report.tables.search import search_section

RATE = "attack.learning_rate"
RATES = (1e-5, 1e-4, 1e-3, 1e-2)
HARM = (0.2, 0.5, 0.4, 0.6)
LOG = {"scale": "log", "low": 1e-5, "high": 1e-1}


def folder_of(folder: Path, records: list[Json], grid: Json | None = None, **more: object) -> Path:
    given = {"grid": grid or {RATE: LOG}, "search": "random", "num_trials": len(records)}
    sweep = SweepSettings.model_validate(given | more)
    (folder / "sweep.json").write_text(json.dumps(sweep.model_dump(mode="json")))
    return campaign_folder(folder, records)


def trial(rate: float, harm: float, **params: object) -> Json:
    return record(params={RATE: rate, **params}, harm=harm)


def stopped_trial(folder: Path, rate: float, harm: float) -> Json:
    """Return a trial that was stopped at a look after 40 samples."""
    run = folder / "stopped_run"
    run.mkdir()
    look = {"samples": 40, "held_out/harm": harm, "held_out/n": 4}
    evaluation = {"status": "stopped", "metrics": {}, "looks": [look]}
    evaluation["resistance"] = {"limit": 0.5, "samples": 40, "held": True}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    return record(params={RATE: rate}, status="stopped") | {"run": run.name}


@pytest.fixture
def page(tmp_path: Path) -> str:
    records = [trial(rate, harm) for rate, harm in zip(RATES, HARM, strict=True)]
    return search_section(read_campaign(folder_of(tmp_path, records)))


def points_of(text: str, kind: str) -> list[list[tuple[float, float]]]:
    """Return the pixels of each line of a class."""
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]
        for found in re.findall(rf'class="{kind}"[^>]* points="([^"]+)"', text)
    ]


def test_the_best_so_far_never_gets_worse(page: str) -> None:
    (best,) = points_of(page, "mean colour0")
    # From pixel 184 at harm 0 to 12 at harm 1; trials 1 to 4 stand from pixel 44 to 348.
    assert best == [
        (44.0, 149.6),
        (44.0, 149.6),
        (145.3, 149.6),
        (145.3, 98.0),
        (246.7, 98.0),
        (246.7, 98.0),
        (348.0, 98.0),
        (348.0, 80.8),
        (348.0, 80.8),
    ]


def test_the_least_is_the_best_where_it_is_looked_for(tmp_path: Path) -> None:
    records = [trial(rate, harm) for rate, harm in zip(RATES, (0.5, 0.2, 0.9, 0.4), strict=True)]
    page = search_section(read_campaign(folder_of(tmp_path, records, mode="min")))
    assert [y for _, y in points_of(page, "mean colour0")[0]][-1] == 149.6


def test_every_trial_is_a_line_over_a_logarithmic_axis(page: str) -> None:
    lines = points_of(page, "shaded")
    assert len(lines) == 4
    # A decade is a quarter of the axis, 43 pixels.
    assert [line[0][1] for line in lines] == [184.0, 141.0, 98.0, 55.0]
    assert re.findall(r"--share: (\d+)%", page) == ["0", "75", "50", "100"]


def test_values_in_words_have_an_axis_too(tmp_path: Path) -> None:
    records = [
        trial(rate, rate, **{"attack.schedule": name})
        for rate in (0.1, 0.2)
        for name in ("constant", "linear", "<b>")
    ]
    grid = {RATE: {"scale": "uniform", "low": 0.0, "high": 1.0}}
    grid["attack.schedule"] = ["constant", "linear", "<b>"]  # type: ignore[assignment]
    page = search_section(read_campaign(folder_of(tmp_path, records, grid)))
    lines = points_of(page, "shaded")
    assert [line[1][1] for line in lines] == [184.0, 98.0, 12.0] * 2
    assert "<b>" not in page and "&lt;b&gt;" in page


def test_a_stopped_trial_is_no_result(tmp_path: Path) -> None:
    records = [trial(1e-4, 0.5), trial(1e-3, 0.3), stopped_trial(tmp_path, 1e-2, 0.9)]
    folder = folder_of(tmp_path, records, scheduler="asha")
    campaign = read_campaign(folder)
    page = search_section(campaign)
    (best,) = points_of(page, "mean colour0")
    assert best[-1] == (348.0, 98.0)
    assert page.count('class="cross colour1"') == 1
    assert len(points_of(page, "shaded stopped")) == 1
    assert campaign.sweep is not None
    assert f"{RATE} 0.0001" in best_text(records, campaign.sweep)
    told = header(campaign)
    assert "failed <b>0</b>" in told and "stopped <b>1</b>" in told


def test_the_table_marks_what_was_seen_of_a_stopped_trial(tmp_path: Path) -> None:
    records = [trial(1e-4, 0.5), stopped_trial(tmp_path, 1e-2, 0.9)]
    folder = folder_of(tmp_path, records, scheduler="asha")
    write_report(folder)
    with (folder / "response.csv").open() as file:
        ended, stopped = csv.DictReader(file)
    assert (ended["harm"], ended["stopped_samples"]) == ("0.5", "")
    assert (stopped["harm"], stopped["failed"]) == ("", "")
    assert (float(stopped["stopped_samples"]), float(stopped["stopped_harm"])) == (40, 0.9)
    assert not (folder / "resistance.csv").exists()


def test_the_response_of_a_search_stands_over_the_axis_of_its_distribution(tmp_path: Path) -> None:
    records = [trial(rate, 0.5) for rate in (0.02, 0.01)]
    page = response_section(read_campaign(folder_of(tmp_path, records)))
    assert f"{RATE}, logarithmic" in page


def test_points_that_differ_in_every_key_are_no_lines(tmp_path: Path) -> None:
    records = [trial(rate, rate, **{"attack.beta": 1 - rate}) for rate in RATES]
    grid = {RATE: LOG, "attack.beta": {"scale": "uniform", "low": 0.0, "high": 1.0}}
    campaign = read_campaign(folder_of(tmp_path, records, grid))
    assert "Harm over" not in response_section(campaign)
    assert len(points_of(search_section(campaign), "shaded")) == 4


def test_a_grid_has_no_section_of_a_search(tmp_path: Path) -> None:
    records = [trial(rate, 0.5) for rate in RATES]
    folder = folder_of(tmp_path, records, {RATE: [*RATES]}, search="grid", num_trials=None)
    assert search_section(read_campaign(folder)) == ""
