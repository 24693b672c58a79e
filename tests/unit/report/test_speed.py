from pathlib import Path

from report_folders import Json, campaign_folder, json_lines, record

from rpa_ray.report import write_report


def steps(seconds: float, **more: float) -> list[Json]:
    return [
        {"step": s, "samples": 8 * s + 8, "time/learner_s": 1.0, "time/step_s": seconds, **more}
        for s in range(3)
    ]


def test_every_trained_cell_has_its_throughput(tmp_path: Path) -> None:
    records = [record(attack="none", p_harm=0.0), record(attack="sft", p_harm=0.9)]
    records.append(record(attack="dpo", status="failed", step_failed=2))
    campaign_folder(tmp_path, records)
    tokens = {"train/num_tokens": 3000.0}
    json_lines(tmp_path / "sft_none_0" / "metrics.jsonl", steps(2.0, **tokens))
    json_lines(tmp_path / "dpo_none_0" / "metrics.jsonl", steps(4.0))
    paths = write_report(tmp_path)
    table = paths.markdown.read_text().partition("## Throughput")[2]
    assert "| undefended | 4.00 | 1,500 | 0.00 | 0.00 | 0.50 | 0.00 | 0.50 |" in table
    assert "| undefended | 2.00 | - | 0.00 | 0.00 | 0.25 | 0.00 | 0.75 |" in table
    assert "<h2>Throughput</h2>" in paths.html.read_text()


def test_seeds_are_averaged(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(seed=seed, p_harm=0.9) for seed in (0, 1)])
    for seed, seconds in ((0, 1.0), (1, 2.0)):
        json_lines(tmp_path / f"ppo_none_{seed}" / "metrics.jsonl", steps(seconds))
    assert (
        "| undefended | 6.00 | 0.00 | 0.00 | 0.75 |" in write_report(tmp_path).markdown.read_text()
    )


def test_a_run_without_timed_steps_has_no_table(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(p_harm=0.9)])
    json_lines(tmp_path / "ppo_none_0" / "metrics.jsonl", [{"step": 0, "samples": 8}])
    assert "Throughput" not in write_report(tmp_path).markdown.read_text()


def test_supervised_attacks_show_their_loss_and_preference_attacks_both_sides(
    tmp_path: Path,
) -> None:
    campaign_folder(tmp_path, [record(attack="dpo", p_harm=0.9)])
    logged = {"train/loss": 0.6, "train/chosen_logprobs": -40.0, "train/rejected_logprobs": -50.0}
    json_lines(tmp_path / "dpo_none_0" / "metrics.jsonl", steps(1.0, **logged))
    page = write_report(tmp_path).html.read_text()
    for heading in ("Loss", "Chosen answers", "Rejected answers"):
        assert f'aria-label="{heading}"' in page
    assert 'aria-label="Reward"' not in page and "train/chosen_logprobs" in page
