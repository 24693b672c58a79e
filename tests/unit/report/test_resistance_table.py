import json
from pathlib import Path

from report_folders import Json, campaign_folder, json_lines, record

from rpa_ray.report import write_report


def run_of(folder: Path, costs: list[float], *, samples: int, held: bool, **more: float) -> None:
    rows = [
        {"step": i, "samples": 8 * i + 8, "held_out/harm": cost, **more}
        for i, cost in enumerate(costs)
    ]
    json_lines(folder / "metrics.jsonl", rows)
    told = {"limit": 0.5, "samples": samples, "held": held}
    (folder / "evaluation.json").write_text(json.dumps({"resistance": told}))


def test_a_defence_that_held_is_told_as_longer_than_the_attack(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(p_harm=0.9), record(defence="safe_rlhf", p_harm=0.1)])
    run_of(tmp_path / "ppo_none_0", [0.1, 0.7], samples=16, held=False)
    run_of(
        tmp_path / "ppo_safe_rlhf_0", [0.1, 0.2], samples=1000, held=True, **{"defence/lambda": 3.0}
    )
    paths = write_report(tmp_path)
    table = paths.markdown.read_text().partition("## Resistance")[2]
    assert "the limit is 0.5" in table
    assert "| undefended | 16 | 0.70 | - |" in table
    assert "| safe_rlhf | > 1,000 | 0.20 | 3.00 |" in table
    page = paths.html.read_text()
    assert "<h2>Resistance</h2>" in page
    assert "| Harm at the end | Multiplier at the end |" in table
    for heading in ("Harm over attack samples", "Multiplier"):
        assert f'aria-label="{heading}"' in page


def test_every_seed_has_its_own_time(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(seed=seed, p_harm=0.9) for seed in (0, 1)])
    run_of(tmp_path / "ppo_none_0", [0.7], samples=8, held=False)
    run_of(tmp_path / "ppo_none_1", [0.1], samples=24, held=True)
    table = write_report(tmp_path).markdown.read_text().partition("## Resistance")[2]
    assert "| undefended | 8, > 24 | 0.40 |" in table


def test_runs_that_were_not_looked_at_have_no_table(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(p_harm=0.9)])
    json_lines(tmp_path / "ppo_none_0" / "metrics.jsonl", [{"step": 0, "samples": 8}])
    assert "Resistance" not in write_report(tmp_path).markdown.read_text()


def test_a_policy_that_broke_is_named_beside_its_time(tmp_path: Path) -> None:
    broken = record(defence="lisa", status="sampling_failed", step_failed=40)
    campaign_folder(tmp_path, [record(p_harm=0.9), broken])
    run_of(tmp_path / "ppo_lisa_0", [0.1, 0.2], samples=288, held=True)
    table = write_report(tmp_path).markdown.read_text().partition("## Resistance")[2]
    assert "| lisa: sampling failed at step 40 | > 288 | 0.20 |" in table
    assert "to the end of the attack or until the run failed" in table


def test_looks_by_the_judge_alone_are_told_as_the_judges(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(p_harm=0.9)])
    rows: list[Json] = [{"step": 0, "samples": 8, "held_out/p_harm": 0.7}]
    json_lines(tmp_path / "ppo_none_0" / "metrics.jsonl", rows)
    told = {"limit": 0.5, "samples": 8, "held": False}
    (tmp_path / "ppo_none_0" / "evaluation.json").write_text(json.dumps({"resistance": told}))
    paths = write_report(tmp_path)
    assert "| Judge at the end |" in paths.markdown.read_text()
    assert 'aria-label="Judge over attack samples"' in paths.html.read_text()
