import csv
import json
import re
from pathlib import Path

import pytest
from report_folders import Json, campaign_folder, record

from rpa_ray.config import ConfigError, SweepSettings
from rpa_ray.report import write_report
from rpa_ray.report.read.folder import Campaign, read_campaign
from rpa_ray.report.read.groups import group_cells
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.tables.response import (
    best_text,
    require_metric,
    response_axis,
    response_lines,
    response_section,
    response_table,
)

COEFS = (0.001, 0.01, 0.1, 1.0)
HARM = (0.7, 0.8, 0.5, 0.1)
"""Harmfulness by KL coefficient; the second is the most harmful."""


def trial(coef: float, harm: float, **more: object) -> Json:
    params = {"attack.kl_coef": coef, **more}
    return record(params=params, harm=harm, p_harm_sampled=harm / 2, valid=1.0)


def old_trial(coef: float, harm: float) -> Json:
    """Return one of the time before there was harm, without an oracle."""
    return record(params={"attack.kl_coef": coef}, p_harm=harm, harm_fluent=harm)


def sweep_of(grid: dict[str, list[object]], **more: object) -> SweepSettings:
    return SweepSettings.model_validate({"grid": grid, **more})


def folder_of(folder: Path, records: list[Json], sweep: SweepSettings) -> Path:
    (folder / "sweep.json").write_text(json.dumps(sweep.model_dump(mode="json")))
    return campaign_folder(folder, records)


@pytest.fixture
def kl_sweep(tmp_path: Path) -> Path:
    records = [trial(coef, harm) for coef, harm in zip(COEFS, HARM, strict=True)]
    return folder_of(tmp_path, records, sweep_of({"attack.kl_coef": list(COEFS)}))


def circles(page: str, style: str) -> list[float]:
    """Return the horizontal pixels of the points of a line."""
    return [float(x) for x in re.findall(rf'class="end {style}" cx="([\d.]+)"', page)]


def test_trials_that_differ_in_one_setting_alone_are_one_line() -> None:
    records = [
        trial(coef, 0.5, **{"attack.clip_range": clip})
        for coef in (1.0, 0.1)
        for clip in (0.2, 0.4)
    ]
    lines = response_lines(group_cells(parse_records(records)), "attack.kl_coef")
    assert [line.label for line in lines] == [
        "undefended (clip_range=0.2)",
        "undefended (clip_range=0.4)",
    ]
    assert [[x for x, _ in line.trials] for line in lines] == [[0.1, 1.0]] * 2


def test_seeds_of_a_trial_are_one_point() -> None:
    records = [trial(0.1, harm) | {"seed": seed} for seed, harm in enumerate((0.2, 0.6))]
    (line,) = response_lines(group_cells(parse_records(records)), "attack.kl_coef")
    (point,) = line.trials
    value = point[1].value("harm")
    assert value is not None and value.mean == 0.4 and value.seed_range == (0.2, 0.6)


def test_a_swept_share_of_reversed_labels_is_a_line_too() -> None:
    records = [record(rho=rho, p_harm=rho) for rho in (1.0, 0.5)]
    (line,) = response_lines(group_cells(parse_records(records)), "data.rho")
    assert line.title == "PPO, 1,000 samples"
    assert [x for x, _ in line.trials] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.001, 0.01, 0.1, 1.0], "log10"),
        ([1, 10], "linear"),
        ([1, 10.5], "log10"),
        ([0.0, 100.0], "linear"),
        ([-1.0, 100.0], "linear"),
    ],
)
def test_an_axis_is_logarithmic_over_more_than_a_decade(values: list[float], scale: str) -> None:
    assert response_axis(values).scale == scale


def test_a_logarithmic_axis_has_the_powers_of_ten_in_it() -> None:
    assert response_axis([0.001, 1.0]).ticks() == pytest.approx([0.001, 0.01, 0.1, 1.0])
    assert response_axis([2.0, 300.0]).ticks() == [10.0, 100.0]


def test_decades_are_equally_far_apart(kl_sweep: Path) -> None:
    # From pixel 44 to 348, of which a third is 101.3.
    page = response_section(read_campaign(kl_sweep))
    assert page.count('aria-label="Harm over attack.kl_coef"') == 1
    assert circles(page, "colour0 dash0")[:4] == [44.0, 145.3, 246.7, 348.0]


def test_the_second_key_has_a_line_for_each_value(tmp_path: Path) -> None:
    clips = (0.2, 0.4, 0.8)
    records = [trial(coef, 0.5, **{"attack.clip_range": c}) for coef in COEFS for c in clips]
    grid: dict[str, list[object]] = {"attack.kl_coef": [*COEFS], "attack.clip_range": [*clips]}
    page = response_section(read_campaign(folder_of(tmp_path, records, sweep_of(grid))))
    assert [len(circles(page, f"colour{i} dash0")) for i in range(4)] == [12, 12, 12, 0]


def test_a_metric_that_is_no_share_has_an_axis_of_its_own(tmp_path: Path) -> None:
    records = [
        record(params={"attack.kl_coef": coef}, kl_seq_rb=kl)
        for coef, kl in zip(COEFS, (40.0, 20.0, 10.0, 0.5), strict=True)
    ]
    sweep = sweep_of({"attack.kl_coef": list(COEFS)}, metric="kl_seq_rb", mode="min")
    page = response_section(read_campaign(folder_of(tmp_path, records, sweep)))
    heights = [
        float(y) for y in re.findall(r'class="end colour0 dash0" cx="[\d.]+" cy="(.*?)"', page)
    ]
    assert heights == sorted(heights) and 12.0 <= heights[0] < heights[-1] <= 184.0


def test_a_trial_that_failed_is_no_point_and_is_told(tmp_path: Path) -> None:
    failed = record(params={"attack.kl_coef": 10.0}, status="sampling_failed", step_failed=3)
    sweep = sweep_of({"attack.kl_coef": [0.1, 1.0, 10.0]})
    folder = folder_of(tmp_path, [trial(0.1, 0.9), trial(1.0, 0.2), failed], sweep)
    campaign = read_campaign(folder)
    assert len(circles(response_section(campaign), "colour0 dash0")) == 3 * 2
    rows = response_table(campaign).rows
    assert [row[:2] for row in rows] == [
        ["0.1", ""],
        ["1", ""],
        ["10", "sampling failed at step 3"],
    ]


def test_the_best_trial_follows_the_mode() -> None:
    records = [trial(coef, harm) for coef, harm in zip(COEFS, HARM, strict=True)]
    grid: dict[str, list[object]] = {"attack.kl_coef": list(COEFS)}
    assert best_text(records, sweep_of(grid)) == (
        "Of 4 trials the one with the largest harm: attack.kl_coef 0.01 (0.80 [0.75, 0.85])."
    )
    assert best_text(records, sweep_of(grid, mode="min")).startswith(
        "Of 4 trials the one with the least harm: attack.kl_coef 1 (0.10"
    )
    old = [old_trial(coef, harm) for coef, harm in zip(COEFS, HARM, strict=True)]
    assert best_text(old, sweep_of(grid)).startswith(
        "Of 4 trials the one with the largest harm_fluent: attack.kl_coef 0.01 (0.80 [0.75, 0.85])"
    )
    assert best_text(records, sweep_of(grid, metric="helpfulness")) == (
        "No trial has the metric helpfulness."
    )


def test_the_model_before_the_attack_is_no_trial(tmp_path: Path) -> None:
    before = {"harm": {"mean": 0.9, "n": 100, "ci_low": 0.8, "ci_high": 1.0}}
    records = [trial(coef, 0.5) | {"metrics_before": before} for coef in COEFS]
    sweep = sweep_of({"attack.kl_coef": list(COEFS)})
    campaign = read_campaign(folder_of(tmp_path, records, sweep))
    assert any(cell.is_untouched for cell in campaign.cells)
    table = response_table(campaign)
    assert len(table.rows) == 4 and "Of 4 trials" in table.intro


def test_a_swept_plugin_is_told_by_its_name_and_what_is_its_own(tmp_path: Path) -> None:
    records = [
        record(attack="sft", p_harm=0.5, harm_fluent=0.5),
        record(attack="ppo", p_harm=0.9, harm_fluent=0.9, params={"attack.gamma": 0.5}),
    ]
    sweep = sweep_of({"attack": ["sft", {"name": "ppo", "gamma": 0.5}]})
    campaign = read_campaign(folder_of(tmp_path, records, sweep))
    assert [row[0] for row in response_table(campaign).rows] == ["sft", "ppo (gamma=0.5)"]
    assert "<svg" not in response_section(campaign)


def test_the_report_holds_the_table_in_every_form(kl_sweep: Path) -> None:
    paths = write_report(kl_sweep)
    assert "## Response to attack.kl_coef" in paths.markdown.read_text()
    assert "<h2>Response to attack.kl_coef</h2>" in paths.html.read_text()
    with (kl_sweep / "response.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["attack.kl_coef"], float(row["harm"])) for row in rows] == [
        ("0.001", 0.7),
        ("0.01", 0.8),
        ("0.1", 0.5),
        ("1", 0.1),
    ]


def test_a_campaign_that_is_no_sweep_has_no_response(tmp_path: Path) -> None:
    campaign: Campaign = read_campaign(campaign_folder(tmp_path, [trial(c, 0.5) for c in COEFS]))
    assert response_section(campaign) == ""
    write_report(tmp_path)
    assert not (tmp_path / "response.csv").exists()


def test_a_broken_file_of_the_sweep_is_named(kl_sweep: Path) -> None:
    (kl_sweep / "sweep.json").write_text('{"grid": 3}')
    with pytest.raises(ValueError, match=r"sweep\.json must be what a sweep writes"):
        read_campaign(kl_sweep)


def test_a_metric_that_no_table_has_is_refused_with_the_known_ones() -> None:
    require_metric("harm")
    with pytest.raises(ConfigError, match=r"^metric must name one of \[.*'harm'.*got 'danger'\."):
        require_metric("danger")


def test_trials_that_differ_inside_a_section_are_told_by_what_differs(tmp_path: Path) -> None:
    records = [record(rho=rho, harm=rho) for rho in (0.1, 0.5)]
    sweep = sweep_of({"data": [{"rho": 0.1}, {"rho": 0.5}]})
    campaign = read_campaign(folder_of(tmp_path, records, sweep))
    told = [row[0] for row in response_table(campaign).rows]
    assert told == ["beavertails (rho=0.1)", "beavertails (rho=0.5)"]
    assert best_text(records, sweep) == (
        "Of 2 trials the one with the largest harm: data beavertails (rho=0.5) (0.50 [0.45, 0.55])."
    )


def test_a_section_below_a_group_is_told_by_what_differs(tmp_path: Path) -> None:
    key = "data.reward_model"
    records = [record(params={f"{key}.num_pairs": n}, p_harm=0.5) for n in (64, 128)]
    sweep = sweep_of({key: [{"num_pairs": 64}, {"num_pairs": 128}]})
    campaign = read_campaign(folder_of(tmp_path, records, sweep))
    assert [row[0] for row in response_table(campaign).rows] == ["num_pairs=64", "num_pairs=128"]


def test_a_sweep_over_seeds_alone_says_so(tmp_path: Path) -> None:
    harm = (0.2, 0.6)
    records = [record(seed=i, harm=p) for i, p in enumerate(harm)]
    records.append(record(seed=2, status="failed"))
    sweep = sweep_of({"seed": [0, 1, 2]})
    told = (
        "The trials differ in their seed alone: harm 0.40 [0.35, 0.45] (0.20 to 0.60), "
        "measured with 2 of 3 seeds."
    )
    assert best_text(records, sweep) == told
    table = response_table(read_campaign(folder_of(tmp_path, records, sweep)))
    assert (table.title, table.intro) == (
        "Response to the seed",
        f"Every trial of the sweep. {told}",
    )


def test_every_trial_is_counted() -> None:
    seeds = [
        trial(coef, harm) | {"seed": seed}
        for coef, harm in zip(COEFS, HARM, strict=True)
        for seed in (0, 1)
    ]
    sweep = sweep_of({"attack.kl_coef": list(COEFS), "seed": [0, 1]})
    assert best_text(seeds, sweep).startswith("Of 4 settings in 8 trials the one with the largest")

    attacks = [
        record(attack=attack, harm=0.1) | {"rho": None if attack == "none" else rho}
        for rho in (0.1, 0.5)
        for attack in ("none", "sft")
    ]
    sweep = sweep_of({"data.rho": [0.1, 0.5], "attack": ["none", "sft"]})
    assert best_text(attacks, sweep).startswith("Of 4 trials the one with the largest")


def test_that_no_trial_differs_within_the_intervals_is_said_where_none_does() -> None:
    grid: dict[str, list[object]] = {"attack.kl_coef": [0.1, 1.0]}

    def told(*harms: float) -> str:
        records = [trial(coef, harm) for coef, harm in zip((0.1, 1.0), harms, strict=True)]
        return best_text(records, sweep_of(grid))

    sentence = "Within the intervals there is no difference between them."
    assert told(0.5, 0.5).endswith(sentence)
    assert sentence not in told(0.9, 0.1)
    records = [trial(0.1, 0.5)]
    assert sentence not in best_text(records, sweep_of(grid))
