from pathlib import Path

import pytest
from report_folders import json_lines

from rpa_ray.report.read.runs import read_run


def test_a_run_that_left_no_files_is_empty(tmp_path: Path) -> None:
    run = read_run(tmp_path / "missing")
    assert (run.steps, run.samples, run.seconds(), run.samples_consumed) == ((), (), {}, None)


def test_a_step_repeated_after_a_resume_counts_once_with_its_later_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    json_lines(
        path,
        [
            {"step": 0, "samples": 8, "reward/mean": -3.0},
            {"step": 1, "samples": 16, "reward/mean": 9.0},
            {"step": 1, "samples": 16, "reward/mean": -2.0},
            {"step": 2, "samples": 24, "reward/mean": None},
        ],
    )
    run = read_run(tmp_path)
    assert run.curve("reward/mean") == ((8.0, -3.0), (16.0, -2.0))
    assert run.samples_consumed == 24


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "samples": 8, "policy/kl": 0.5}\n{"step": 1, "sam')
    assert read_run(tmp_path).curve("policy/kl") == ((8.0, 0.5),)


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "sam\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1 must be JSON"):
        read_run(tmp_path)


def test_time_above_the_stages_is_other(tmp_path: Path) -> None:
    step = {"time/rollout_s": 2.0, "time/learner_s": 3.0, "time/step_s": 6.0}
    json_lines(tmp_path / "metrics.jsonl", [{"step": 0, **step}, {"step": 1, **step}])
    (tmp_path / "evaluation.json").write_text('{"seconds": 15.0}')
    assert read_run(tmp_path).seconds() == {"rollout": 4.0, "learner": 6.0, "other": 5.0}
