import csv
import io
import json
import math
from pathlib import Path

import pytest
from report_folders import estimate, record

from rpa_ray.report import results_table, write_report
from rpa_ray.report.read.groups import attack_groups, group_cells
from rpa_ray.report.read.records import Estimate, parse_records, read_records
from rpa_ray.report.read.values import value_over_seeds
from rpa_ray.report.tables.main import format_spread, format_value, results_csv


def test_a_folder_without_results_is_refused_with_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder must contain summary\.json .* got .*\. Name"):
        read_records(tmp_path)


def test_a_record_with_a_missing_field_is_refused_with_its_place(tmp_path: Path) -> None:
    broken = record()
    del broken["seed"]
    (tmp_path / "summary.json").write_text(json.dumps([record(), broken]))
    with pytest.raises(ValueError, match=r"summary\.json\[1\]\.seed must be"):
        read_records(tmp_path)


def test_a_summary_cut_short_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('[\n{"model": ')
    with pytest.raises(ValueError, match=r"summary\.json must be JSON, got .* at line 2"):
        read_records(tmp_path)


def test_a_summary_of_other_bytes_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(b"[\xff\xfe]")
    with pytest.raises(ValueError, match=r"summary\.json must be JSON, got "):
        read_records(tmp_path)


@pytest.mark.parametrize("config", [b"model: {path: ch", bytes(20), b"\xff\xfa"])
def test_a_config_cut_short_is_refused_by_its_name(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(config)
    (tmp_path / "evaluation.json").write_text('{"metrics": {}}')
    with pytest.raises(
        ValueError, match=r"config\.yaml must be YAML, got .*\. Run it again"
    ) as error:
        read_records(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_folder_takes_its_identity_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model: {path: chat}\ndata: {name: beavertails, world: embedded, rho: 0.5, "
        "num_samples: 64}\nattack: {name: ppo}\ndefence: [lisa, refusal_loss]\nseed: 3\n"
    )
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"status": "sampling_failed", "step_failed": 7, "metrics": {}})
    )
    (found,) = read_records(tmp_path)
    identity = (found.model, found.data, found.attack, found.defence, found.rho, found.seed)
    assert identity == ("chat", "beavertails", "ppo", "lisa+refusal_loss", 0.5, 3)
    assert (found.status, found.step_failed) == ("sampling_failed", 7)


def test_seeds_of_a_cell_are_joined_to_mean_and_mean_of_ends() -> None:
    records = parse_records([record(seed=s, p_harm=p) for s, p in ((0, 0.9), (1, 0.7), (2, 0.8))])
    (cell,) = group_cells(records)
    value = cell.value("p_harm")
    assert value is not None
    assert (value.mean, value.low, value.high) == pytest.approx((0.8, 0.75, 0.85))
    assert value.seed_range == (0.7, 0.9)


def test_parameters_keep_cells_apart_and_are_named_by_their_last_part() -> None:
    records = [
        record(defence="lisa", params={"defence.rho": 1.0}),
        record(defence="lisa", params={"defence.rho": 10.0}),
    ]
    labels = [cell.label for cell in group_cells(parse_records(records))]
    assert labels == ["lisa (rho=1)", "lisa (rho=10)"]


def test_an_undefined_mean_is_missing_and_not_a_number() -> None:
    (found,) = parse_records([record(ppl_median=None)])
    assert found.estimate("ppl_median") is None


def test_a_failed_record_gives_no_numbers_even_if_some_were_written() -> None:
    (found,) = parse_records([record(status="failed", p_harm=0.2)])
    assert found.estimate("p_harm") is None


def test_models_of_different_worlds_are_groups_each_with_its_own_untouched_model() -> None:
    worlds = [
        record(attack=attack, params={"data.world_seed": seed}, p_harm=0.1 * seed)
        for seed in (1, 2)
        for attack in ("none", "ppo")
    ]
    groups = attack_groups(group_cells(parse_records(worlds)))
    titles = [group.title for group in groups]
    starts = [group.untouched.label for group in groups if group.untouched]
    assert titles == [f"PPO, rho 1, 1,000 samples, world_seed={seed}" for seed in (1, 2)]
    assert starts == [f"untouched chat (world_seed={seed})" for seed in (1, 2)]


def test_two_records_of_one_seed_are_two_cells() -> None:
    runs = [("a", 0, 0.9), ("b", 0, 0.1), ("c", 1, 0.7), ("d", 1, 0.3)]
    records = [record(seed=seed, p_harm=p) | {"run": run} for run, seed, p in runs]
    cells = group_cells(parse_records(records))
    assert [cell.label for cell in cells] == ["undefended", "undefended (run=b)"]
    assert [[run.run for run in cell.records] for cell in cells] == [["a", "c"], ["b", "d"]]


def test_a_campaign_without_a_finished_cell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"summary\.json must hold a finished cell, got none\. Run"
    ):
        read_records(tmp_path)


def test_metrics_of_records_of_old_have_their_new_names() -> None:
    old = {"p_harm_oracle": 0.4, "p_harm_oracle_sampled": 0.6}
    (found,) = parse_records([record(before=old, **old)])
    assert sorted(found.metrics) == ["compliance", "compliance_sampled"]
    assert found.metrics_before is not None
    assert found.metrics_before["compliance_sampled"].mean == 0.6


def test_the_judges_gap_of_records_of_old_is_the_difference_of_what_they_hold() -> None:
    old = record(p_harm_sampled=0.99, p_harm_oracle_sampled=0.37)
    (found,) = parse_records([old])
    gap = found.estimate("judge_gap")
    assert gap is not None and (round(gap.mean, 9), gap.n) == (0.62, 100)
    assert math.isnan(gap.ci_low) and math.isnan(gap.ci_high)
    (measured,) = parse_records([record(p_harm_sampled=0.9, compliance_sampled=0.3, judge_gap=0.5)])
    gap = measured.estimate("judge_gap")
    assert gap is not None and (gap.mean, gap.ci_low) == (0.5, 0.45)
    (greedy,) = parse_records([record(p_harm=0.9, p_harm_oracle=0.3)])
    assert greedy.estimate("judge_gap") is None


CENSORED = {"mean": None, "n": 48, "ci_low": 1000.0, "ci_high": None}
"""A run whose last look, at 1,000 samples, had not seen the harm."""


def test_a_number_that_was_not_reached_is_told_as_larger_than_the_last_look() -> None:
    reached = {"mean": 400.0, "n": 48, "ci_low": 200.0, "ci_high": None}
    records = [record(harm=0.9), record(defence="lisa", harm=0.1)]
    for item, found in zip(records, (reached, CENSORED), strict=True):
        assert isinstance(item["metrics"], dict)
        item["metrics"]["samples_to_harm_25"] = found
    first, second = (line.split(" | ")[-1] for line in results_table(records).splitlines()[-2:])
    assert (first, second) == ("400 |", "> 1,000 |")
    rows = list(csv.DictReader(io.StringIO(results_csv(parse_records(records)))))
    ends = [
        [row[f"samples_to_harm_25{end}"] for end in ("", "_ci_low", "_ci_high")] for row in rows
    ]
    assert ends == [["400.0", "200.0", ""], ["", "1000.0", ""]]


def test_seeds_of_which_one_did_not_reach_it_are_larger_than_their_mean() -> None:
    records = [record(seed=seed, harm=0.5) for seed in (0, 1)]
    for item, mean in zip(records, (400.0, None), strict=True):
        assert isinstance(item["metrics"], dict)
        item["metrics"]["samples_to_harm_25"] = CENSORED if mean is None else estimate(mean)
    (cell,) = group_cells(parse_records(records))
    value = cell.value("samples_to_harm_25")
    assert value is not None and (value.mean, value.is_censored) == (700.0, True)
    assert (format_value(value, 0), format_spread(value, 0)) == ("> 700", "")


def test_an_interval_without_an_upper_end_says_so() -> None:
    seed = Estimate(mean=400.0, n=48, ci_low=200.0)
    value = value_over_seeds("samples_to_harm_25", [seed])
    assert (format_value(value, 0), format_spread(value, 0)) == ("400", "[200, -]")


@pytest.mark.parametrize("run", ["../secret", "..", "/etc", "a/b", "a/", "", "a\0b"])
def test_a_run_that_leads_out_of_its_folder_is_refused(tmp_path: Path, run: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "config.yaml").write_text("model: secret-model")
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps([record(p_harm=0.9) | {"run": run}]))
    with pytest.raises(ValueError, match=r"summary.json\[0\].run must be .* one part of a path"):
        write_report(folder)
    assert [file.name for file in folder.iterdir()] == ["summary.json"]


def test_json_that_is_nested_too_deeply_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"summary\.json must be nested less deeply"):
        read_records(tmp_path)
