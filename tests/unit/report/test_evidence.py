"""Every number of a table from two files: written from runs, read back, and computed apart."""

import json
from collections import defaultdict
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
from report_folders import answers_file, campaign_folder, record

from rpa_ray.evaluation.looks import HARM, NUM_ANSWERS
from rpa_ray.report.evidence import read_evidence, write_evidence
from rpa_ray.report.figures.dose import dose_figure
from rpa_ray.report.html import write_report
from rpa_ray.report.read.folder import read_campaign
from rpa_ray.report.read.records import is_evidence
from rpa_ray.run_folder.names import ANSWERS, ANSWERS_BEFORE, CHECKS, EVALUATION

PROMPTS = [f"item {i // 2}" for i in range(40)]


def looks(*harms: float) -> list[dict[str, float]]:
    return [
        {
            "samples": 100.0 * i,
            HARM: harm,
            f"{HARM}_low": harm / 2,
            f"{HARM}_high": (1 + harm) / 2,
            NUM_ANSWERS: 40.0,
        }
        for i, harm in enumerate(harms)
    ]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a campaign of an undefended and a defended cell, and of one that failed."""
    rng = Random(0)
    records = [
        record(defence="none", harm=0.8),
        record(defence="lisa", harm=0.1),
        record(defence="vaccine", status="sampling_failed", step_failed=3),
    ]
    folder = campaign_folder(tmp_path / "runs", records)
    for item, level in zip(records, (0.8, 0.1), strict=False):
        run = folder / str(item["run"])
        values = [min(1.0, max(0.0, rng.gauss(level, 0.2))) for _ in PROMPTS]
        answers_file(run, values, items=PROMPTS)
        (run / ANSWERS).rename(run / "after")
        answers_file(run, [0.0] * len(PROMPTS), items=PROMPTS)
        (run / ANSWERS).rename(run / ANSWERS_BEFORE)
        (run / "after").rename(run / ANSWERS)
        (run / EVALUATION).write_text(json.dumps({"looks": looks(0.0, level / 2, level)}))
    return folder


@pytest.fixture
def evidence(runs: Path, tmp_path: Path) -> Path:
    write_evidence([runs], tmp_path / "proof")
    return tmp_path / "proof"


def test_every_cell_is_there_and_the_model_before_the_attack_once(evidence: Path) -> None:
    found = [(r.attack, r.defence, r.status) for r in read_evidence(evidence)]
    assert sorted(found) == [
        ("none", "none", "ok"),
        ("ppo", "lisa", "ok"),
        ("ppo", "none", "ok"),
        ("ppo", "vaccine", "sampling_failed"),
    ]


def test_numbers_are_those_of_the_runs_computed_without_this_code(
    runs: Path, evidence: Path
) -> None:
    records = {(r.attack, r.defence): r for r in read_evidence(evidence)}
    for item in json.loads((runs / "summary.json").read_text())[:2]:
        rows = pq.read_table(runs / item["run"] / ANSWERS).to_pylist()
        sampled = [row for row in rows if row["decoding"] == "sampled"]
        metrics = records["ppo", item["defence"]].metrics
        assert metrics["harm"].mean == pytest.approx(fmean(row["harm"] for row in sampled))
        assert metrics["harm"].n == len(sampled)
        assert metrics["harm"].num_items == len({row["item"] for row in sampled}) == 20
        by_item = defaultdict(list)
        for row in sampled:
            by_item[row["item"]].append(row["harm"])
        means = [fmean(values) for values in by_item.values()]
        assert metrics["harm"].ci_low < min(fmean(means), metrics["harm"].mean)
        assert metrics["harm"].ci_high > metrics["harm"].mean


def test_looks_give_dose_and_response(evidence: Path) -> None:
    records = {(r.attack, r.defence): r for r in read_evidence(evidence)}
    undefended = records["ppo", "none"].metrics
    assert undefended["harm_area"].mean == pytest.approx(0.4)
    assert undefended["samples_to_harm_50"].mean == pytest.approx(125.0)
    held = records["ppo", "lisa"].metrics["samples_to_harm_50"]
    assert held.is_censored
    assert held.ci_low == 200.0


def test_a_folder_of_evidence_has_a_report_with_comparisons(evidence: Path) -> None:
    assert is_evidence(evidence)
    campaign = read_campaign(evidence)
    (row,) = campaign.comparisons.to_references
    assert row.cell.defence == "lisa"
    assert row.to_undefended is not None
    assert row.to_undefended.difference.mean < -0.5
    text = write_report(evidence).markdown.read_text()
    assert "## Differences of harm" in text
    assert "sampling failed at step 3" in text


def test_evidence_tells_checks_and_looks_as_its_campaign_does(runs: Path, tmp_path: Path) -> None:
    checks = {"judge_unsafe_mean": {"mean": 0.7, "n": 9}, "judge_safe_mean": {"mean": 0.01, "n": 9}}
    (runs / CHECKS).write_text(json.dumps(checks))
    write_evidence([runs], tmp_path / "one")
    worse = {"judge_unsafe_mean": {"mean": 0.6, "n": 9}, "judge_safe_mean": {"mean": 0.00, "n": 9}}
    (runs / CHECKS).write_text(json.dumps(worse))
    write_evidence([tmp_path / "one", runs], tmp_path / "both")
    campaign = read_campaign(tmp_path / "both")
    assert campaign.gate.values == {"judge_unsafe_mean": 0.6, "judge_safe_mean": 0.01}
    assert any("harmful 0.60 on average" in warning for warning in campaign.gate.warnings)
    (group,) = campaign.groups
    assert "over attack samples" in dose_figure(campaign, group)
    shown = [run.looks()[-1][HARM] for run in campaign.runs.values() if run.looks()]
    assert sorted(shown) == pytest.approx([0.1, 0.8])


def test_seeds_measured_apart_are_joined_from_their_evidence(
    runs: Path, evidence: Path, tmp_path: Path
) -> None:
    later = json.loads((runs / "summary.json").read_text())
    (runs / "summary.json").write_text(json.dumps([{**item, "seed": 1} for item in later]))
    write_evidence([runs], tmp_path / "later")
    write_evidence([evidence, tmp_path / "later", evidence], tmp_path / "both")
    parts = [*read_evidence(evidence), *read_evidence(tmp_path / "later")]
    both = read_evidence(tmp_path / "both")
    assert [(r.defence, r.seed, r.status, r.metrics) for r in both] == [
        (r.defence, r.seed, r.status, r.metrics) for r in parts
    ]


def test_evidence_of_old_is_joined_though_it_lacks_a_column(
    evidence: Path, runs: Path, tmp_path: Path
) -> None:
    old = pq.read_table(evidence / ANSWERS)
    pq.write_table(old.drop_columns(["kl_untouched"]), evidence / ANSWERS)
    records = json.loads((runs / "summary.json").read_text())
    (runs / "summary.json").write_text(json.dumps([one | {"seed": 1} for one in records]))
    write_evidence([evidence, runs], tmp_path / "both")
    joined = pq.read_table(tmp_path / "both" / ANSWERS)
    assert "kl_untouched" in joined.column_names
    assert joined.num_rows > old.num_rows


def test_a_start_that_another_folder_has_as_a_cell_is_not_there_twice(
    evidence: Path, tmp_path: Path
) -> None:
    alone = record(attack="none", defence="none", seed=1, rho=None, num_samples=0, harm=0.0)
    other = campaign_folder(tmp_path / "other", [alone])
    answers_file(other / str(alone["run"]), [0.0] * len(PROMPTS), items=PROMPTS)
    write_evidence([evidence, other], tmp_path / "both")
    starts = [r for r in read_evidence(tmp_path / "both") if r.attack == "none"]
    assert [(r.seed, r.run) for r in starts] == [(1, alone["run"])]


def test_a_hardened_model_before_its_attack_stays_beside_the_untouched_one(tmp_path: Path) -> None:
    alone = record(attack="none", defence="none", rho=None, num_samples=0, harm=0.0)
    attacked = record(defence="repnoise", params={"defence.alpha": 0.1}, harm=1.0)
    folder = campaign_folder(tmp_path / "runs", [alone, attacked])
    for one, name in ((alone, ANSWERS), (attacked, ANSWERS), (attacked, ANSWERS_BEFORE)):
        harm = float(name == ANSWERS and one is attacked)
        answers_file(folder / str(one["run"]), [harm] * len(PROMPTS), items=PROMPTS, name=name)
    (folder / str(attacked["run"]) / EVALUATION).write_text(json.dumps({"looks": looks(0.0, 1.0)}))
    write_evidence([folder], tmp_path / "proof")
    found = [(r.attack, r.defence, r.run) for r in read_evidence(tmp_path / "proof")]
    assert sorted(found, key=str) == [
        ("none", "none", alone["run"]),
        ("none", "repnoise", None),
        ("ppo", "repnoise", attacked["run"]),
    ]


def test_runs_of_one_name_in_several_folders_are_compared_by_their_own_answers(
    tmp_path: Path,
) -> None:
    folders = []
    for defence, level in (("none", 0.9), ("lisa", 0.1)):
        folder = tmp_path / defence
        item = record(defence=defence, harm=level) | {"run": "."}
        answers_file(folder, [level] * 40)
        (folder / EVALUATION).write_text("{}")
        folders.append(campaign_folder(folder, [item]))
    write_evidence(folders, tmp_path / "proof")
    (row,) = read_campaign(tmp_path / "proof").comparisons.to_references
    assert row.to_undefended is not None
    assert row.to_undefended.difference.mean == pytest.approx(-0.8)


def test_texts_are_of_the_first_prompts_alone(evidence: Path) -> None:
    table: list[dict[str, Any]] = pq.read_table(evidence / ANSWERS).to_pylist()
    kept = {row["prompt_index"] for row in table if row["text"]}
    assert kept == set(range(20))


def test_two_campaigns_of_the_same_cells_are_taken_once(runs: Path, tmp_path: Path) -> None:
    write_evidence([runs, runs], tmp_path / "twice")
    assert len(read_evidence(tmp_path / "twice")) == 4


@pytest.mark.parametrize(
    ("key", "value"), [("weights_sha256", "bb"), ("status", "sampling_failed")]
)
def test_two_models_that_are_called_the_same_cell_are_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    folders = []
    for name, other in (("first", {}), ("second", {key: value})):
        item = record(harm=0.5) | {"weights_sha256": "aa"} | other
        folders.append(campaign_folder(tmp_path / name, [item]))
        answers_file(folders[-1] / str(item["run"]), [0.5] * 4)
        (folders[-1] / str(item["run"]) / EVALUATION).write_text("{}")
    with pytest.raises(ValueError, match=f"^{key} of chat beavertails ppo none, seed 0, must be"):
        write_evidence(folders, tmp_path / "proof")
    assert not (tmp_path / "proof").exists()


def test_runs_of_old_that_kept_no_answers_are_refused(tmp_path: Path) -> None:
    folder = campaign_folder(tmp_path / "old", [record(harm=0.5)])
    with pytest.raises(ValueError, match=r"must have answers\.parquet, got none"):
        write_evidence([folder], tmp_path / "proof")


def test_a_model_in_a_folder_is_called_without_the_place_of_that(tmp_path: Path) -> None:
    models = ["/data/runs/align/base_b18e/attacked_model", "owner/name", "chat"]
    runs = [record(defence=name, harm=1.0) for name in ("none", "lisa", "vaccine")]
    records = [run | {"model": model} for run, model in zip(runs, models, strict=True)]
    folder = campaign_folder(tmp_path / "runs", records)
    for one in records:
        answers_file(folder / str(one["run"]), [1.0] * len(PROMPTS), items=PROMPTS)
        (folder / str(one["run"]) / EVALUATION).write_text(json.dumps({"looks": looks(1.0)}))
    write_evidence([folder], tmp_path / "proof")
    found = [one.model for one in read_evidence(tmp_path / "proof")]
    assert found == ["base_b18e/attacked_model", "owner/name", "chat"]
    assert b"/data/runs" not in (tmp_path / "proof" / ANSWERS).read_bytes()
