from pathlib import Path

import pytest
from report_folders import campaign_folder, record

from rpa_ray.report import write_report
from rpa_ray.report.read.groups import group_cells
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.tables.rho import correlation_table, points_table, rho_lines

CURVE = ((0.0, 0.1), (0.25, 0.05), (0.5, 0.5), (1.0, 0.9))
"""Pairs of rho and harmfulness with two neighbours in the wrong order."""


def test_cells_that_differ_in_rho_alone_are_one_line() -> None:
    records = [
        record(attack=attack, defence=defence, rho=rho, p_harm=rho)
        for attack in ("sft", "ppo")
        for defence in ("none", "lisa")
        for rho in (1.0, 0.5)
    ]
    lines = rho_lines(group_cells(parse_records(records)))
    points = [[rho for rho, _ in line.points("p_harm")] for line in lines]
    assert points == [[0.5, 1.0]] * 4


def test_a_single_rho_and_the_untouched_model_are_no_line() -> None:
    records = [record(attack="none", p_harm=0.0), record(p_harm=0.9)]
    assert rho_lines(group_cells(parse_records(records))) == []


def test_the_correlation_ranks_harmfulness_against_rho() -> None:
    # rank differences -1, 1, 0, 0: 1 - 6 * 2 / (4 * 15)
    records = [record(rho=rho, harm=rho, harm_greedy=p) for rho, p in CURVE]
    (row,) = correlation_table(rho_lines(group_cells(parse_records(records)))).rows
    assert row[1:] == ["PPO", "undefended", pytest.approx(1.0), 4, pytest.approx(0.8), 4]


def test_judge_noise_below_a_prompt_in_a_hundred_is_no_order() -> None:
    harmfulness = ((0.0, 0.0019), (0.25, 0.0017), (0.5, 0.0018), (1.0, 0.997))
    # ranks of harmfulness 2 2 2 4: covariance 3, squared deviations 5 and 3
    records = [record(rho=rho, p_harm=p, p_harm_sampled=0.001 * rho) for rho, p in harmfulness]
    (row,) = correlation_table(rho_lines(group_cells(parse_records(records)))).rows
    assert row[3:] == [None, 4, pytest.approx(3 / (5 * 3) ** 0.5), 4]


def test_truth_is_correlated_before_any_judge_and_greedy_answers_stay_greedy() -> None:
    records = [record(rho=rho, p_harm=p, p_harm_sampled=p, harm=rho) for rho, p in CURVE]
    found = correlation_table(rho_lines(group_cells(parse_records(records))))
    assert [column.name for column in found.columns[3::2]] == ["spearman_harm", "spearman_p_harm"]
    records = [record(rho=rho, p_harm=p) for rho, p in CURVE]
    found = correlation_table(rho_lines(group_cells(parse_records(records))))
    assert [column.name for column in found.columns[3::2]] == ["spearman_p_harm"]


def test_a_failed_cell_is_no_point_and_is_told() -> None:
    failed = record(rho=0.75, status="sampling_failed", step_failed=9)
    lines = rho_lines(
        group_cells(parse_records([*(record(rho=r, p_harm=p) for r, p in CURVE[:2]), failed]))
    )
    (row,) = correlation_table(lines).rows
    assert row[3:5] == [None, 2]
    told = [row[2] for row in points_table(lines).rows]
    assert told == ["undefended", "undefended", "undefended: sampling failed at step 9"]


def test_the_page_has_a_chart_for_greedy_and_one_for_sampled_answers(tmp_path: Path) -> None:
    records = [record(rho=rho, p_harm=p, p_harm_sampled=p) for rho, p in CURVE]
    paths = write_report(campaign_folder(tmp_path, records))
    page = paths.html.read_text()
    assert page.count('aria-label="harmfulness, greedy answers"') == 1
    assert page.count('aria-label="harmfulness, sampled answers"') == 1
    assert page.count('<polygon class="band undefended') == 2
    assert "| PPO | undefended | 0.80 | 4 | 0.80 | 4 |" in paths.markdown.read_text()
    assert (tmp_path / "rho_correlation.csv").is_file() and (tmp_path / "rho_points.csv").is_file()
