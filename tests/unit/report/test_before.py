import json
import re
from pathlib import Path

import pytest
from report_folders import Json, campaign_folder, estimate, record

from rpa_ray.defences import OFFLINE_DEFENCES
from rpa_ray.report import results_table, write_report
from rpa_ray.report.read.before import with_before
from rpa_ray.report.read.records import parse_records

BEFORE = {"harm": 0.02}


def untouched_rows(records: list[Json]) -> list[str]:
    return [line for line in results_table(records).splitlines() if "untouched" in line]


def test_the_model_before_the_attack_is_a_row_of_a_campaign() -> None:
    records = [record(defence=name, before=BEFORE, harm=0.9) for name in ("none", "lisa")]
    assert untouched_rows(records) == ["| none | untouched chat | 0.02 [-0.03, 0.07] |"]


def test_a_cell_that_was_not_attacked_is_not_doubled() -> None:
    records = [record(attack="none", harm=0.03), record(before=BEFORE, harm=0.9)]
    assert untouched_rows(records) == ["| none | untouched chat | 0.03 [-0.02, 0.08] |"]


def test_every_model_and_every_data_set_has_its_own() -> None:
    records = [
        record(before={"harm": 0.01 * seed}, params={"data.world_seed": seed}, harm=0.9)
        for seed in (1, 2)
    ]
    records.append(record(before={"harm": 0.05}, harm=0.9) | {"data": "safe_rlhf"})
    assert len(untouched_rows(records)) == 3


@pytest.mark.parametrize("offline", OFFLINE_DEFENCES)
def test_a_run_that_was_hardened_before_the_attack_does_not_tell_of_the_untouched_model(
    offline: str,
) -> None:
    hardened = record(defence=f"{offline}+lisa", before={"harm": 0.0}, harm=0.1)
    assert untouched_rows([hardened]) == []
    lisa, plain = record(defence="lisa", before={"harm": 0.3}), record(before=BEFORE)
    first, *_ = with_before(parse_records([hardened, lisa, plain]))
    assert (first.attack, first.metrics["harm"].mean) == ("none", 0.02)


def test_every_hardened_model_before_its_attacks_is_a_row_by_what_hardened_it() -> None:
    repnoise = {"defence.alpha": 0.1}
    composed = {"defence.repnoise.alpha": 0.1, "defence.lisa.rho": 1.0}
    other = {"defence.repnoise.alpha": 0.1, "defence.tar.num_steps": 25}
    records = [
        record(defence="repnoise", params=repnoise, before={"harm": 0.01}, harm=0.5),
        record(defence="repnoise", params=repnoise, before={"harm": 0.01}, attack="dpo", harm=0.6),
        record(defence="repnoise+lisa", params=composed, before={"harm": 0.01}, harm=0.2),
        record(defence="repnoise+tar", params=other, before={"harm": 0.03}, harm=0.1),
        record(before=BEFORE, harm=0.9),
    ]
    hardened = [line for line in results_table(records).splitlines() if "not attacked" in line]
    assert hardened == [
        "| none | chat with repnoise, not attacked (alpha=0.1) | 0.01 [-0.04, 0.06] |",
        "| none | chat with repnoise+tar, not attacked (alpha=0.1, num_steps=25) "
        "| 0.03 [-0.02, 0.08] |",
    ]
    assert untouched_rows(records) == ["| none | untouched chat | 0.02 [-0.03, 0.07] |"]
    own = record(attack="none", defence="repnoise", params=repnoise, harm=0.02)
    told = [line for line in results_table([own, *records]).splitlines() if "alpha=0.1) |" in line]
    assert told[0].endswith("| 0.02 [-0.03, 0.07] |")
    assert sum("chat with repnoise, not" in line for line in told) == 1


@pytest.mark.parametrize(("distance", "word"), [(0.01, ", not moved"), (0.2, "")])
def test_a_hardening_that_left_the_model_where_it_was_is_told(distance: float, word: str) -> None:
    before = {"harm": 0.07, "kl_untouched": distance, "kl_seq_rb": 0.0}
    text = results_table([record(defence="rmu", before=before, harm=0.8)])
    assert f"| none | chat with rmu, not attacked{word} |" in text


def test_records_of_old_have_no_row_of_their_own() -> None:
    old = record(p_harm=0.9)
    del old["metrics_before"]
    assert untouched_rows([old]) == [] and untouched_rows([record(harm=0.9, before={})]) == []


def test_the_report_shows_it_in_both_files_and_in_the_headline(tmp_path: Path) -> None:
    paths = write_report(campaign_folder(tmp_path, [record(before=BEFORE, harm=0.93)]))
    told = (
        "Harm is 0.02 [-0.03, 0.07] before the attack; 0.93 [0.88, 0.98] after it without a "
        "defence."
    )
    for text in (paths.markdown.read_text(), paths.html.read_text()):
        assert "untouched chat" in text and told in text
        assert "The untouched model is the one before any attack." in text
    lines = paths.csv.read_text().splitlines()
    assert [line.split(",")[3:5] for line in lines[1:]] == [["none", "none"], ["ppo", "none"]]


def test_a_single_run_has_the_row_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model: chat\ndata: {name: beavertails, rho: 1.0, num_samples: 80}\nattack: ppo\n"
        "defence: none\nseed: 0\n"
    )
    outcome = {"status": "ok", "step_failed": None, "looks": [], "seconds": 3.0}
    outcome |= {"metrics": {"harm": estimate(0.9)}, "metrics_before": {"harm": estimate(0.02)}}
    (tmp_path / "evaluation.json").write_text(json.dumps(outcome))
    text = write_report(tmp_path).markdown.read_text()
    assert "| none | untouched chat | 0.02 [-0.03, 0.07] |" in text


def test_a_reward_by_one_of_several_reward_models_is_no_number_of_the_untouched_model() -> None:
    rows = [
        record(rho=rho, harm=rho, reward=9.0, before=BEFORE | {"reward": 5.0}) for rho in (0.5, 1.0)
    ]
    for records, told in ((rows, "-"), (rows[:1], "5.00")):
        assert untouched_rows(records)[0].endswith(f" 0.02 [-0.03, 0.07] | {told} |")


def test_the_model_before_is_told_with_its_reward_where_an_attack_knows_it() -> None:
    records = parse_records(
        [
            record(attack="dpo", before={"harm": 0.1}),
            record(defence="lisa", before={"harm": 0.1, "reward": -3.0}),
        ]
    )
    untouched = with_before(records)[0]
    assert (untouched.attack, untouched.metrics["reward"].mean) == ("none", -3.0)


def test_the_chart_marks_what_each_attack_began_with(tmp_path: Path) -> None:
    records = [
        record(before=BEFORE, harm=0.9),
        record(defence="lisa", before=BEFORE, harm=0.4),
        record(defence="repnoise", before={"harm": 0.25}, harm=0.5),
        record(defence="repnoise+lisa", before={"harm": 0.25}, harm=0.3),
    ]
    page = write_report(campaign_folder(tmp_path, records)).html.read_text()
    rows = re.findall(r'<span class="name">([^<]*)</span>(.*?)class="reading"', page)
    marked = {name: re.findall(r'class="reference" x1="([\d.]+)%"', row) for name, row in rows}
    assert marked.pop("untouched chat") == ["2.00"]
    assert marked == {
        "undefended": ["2.00"],
        "lisa": ["2.00"],
        "repnoise": ["25.00"],
        "repnoise+lisa": ["25.00"],
    }
