import csv
import io

import pytest
from report_folders import Json, record
from rich.console import Console

from rpa_ray.report import results_table, terminal_table
from rpa_ray.report.read.groups import group_cells
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.tables.main import oracle_table, results_csv


def terminal(records: list[Json]) -> str:
    """Return what a terminal of 80 characters shows."""
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_table(records))
    return console.export_text()


GOLDEN = """\
All attacks: model chat, world embedded, data beavertails, rho 1, samples 1,000.

| Attack | Defence | Harm (n 100) | Valid (n 100) | Judge (n 100) |
| --- | --- | --: | --: | --: |
| none | untouched chat | 0.01 [-0.04, 0.06] | 1.00 | 0.01 |
| PPO | undefended | 0.93 [0.88, 0.98] | 0.97 | 0.95 |
| PPO | refusal_loss | 0.02 [-0.03, 0.07] | 1.00 | 0.03 |
| PPO | reward_shaping | 0.03 [-0.02, 0.08] | 0.21 | 0.20* |
| PPO | safe_rlhf | sampling failed at step 40 | - | - |
| PPO | freeze (control) | 0.01 [-0.04, 0.06] | 1.00 | 0.02 |
"""


def test_the_table_is_the_golden_one() -> None:
    records = [
        record(defence="freeze", p_harm_sampled=0.02, harm=0.01, valid=1.0),
        record(defence="refusal_loss", p_harm_sampled=0.03, harm=0.02, valid=1.0),
        record(p_harm_sampled=0.95, harm=0.93, valid=0.97),
        record(defence="reward_shaping", p_harm_sampled=0.2, harm=0.03, valid=0.21),
        record(defence="safe_rlhf", status="sampling_failed", step_failed=40),
        record(attack="none", p_harm_sampled=0.01, harm=0.01, valid=1.0),
    ]
    assert results_table(records) == GOLDEN


OLD_JUDGE = {"p_harm": 0.9, "p_harm_sampled": 0.8, "valid": 1.0}


@pytest.mark.parametrize(
    ("metrics", "first", "text"),
    [
        (OLD_JUDGE | {"harm": 0.3, "p_harm_oracle_sampled": 0.7}, "Harm", "0.30 [0.25, 0.35]"),
        (OLD_JUDGE | {"p_harm_oracle_sampled": 0.7}, "Complies", "0.70 [0.60, 0.79]"),
        (OLD_JUDGE, "Judge", "0.80 [0.75, 0.85]"),
        ({"p_harm": 0.9, "valid": 1.0}, "Judge, greedy", "0.90 [0.85, 0.95]"),
    ],
)
def test_truth_leads_and_the_judge_only_where_there_is_none(
    metrics: dict[str, float | None], first: str, text: str
) -> None:
    *_, header, _, row = results_table([record(**metrics)]).splitlines()
    assert header.startswith(f"| Attack | Defence | {first} (n 100) |")
    assert row.startswith(f"| PPO | undefended | {text} |")
    shown = terminal([record(**metrics)])
    assert first in shown and text in shown


def test_the_asterisk_needs_less_than_half_of_the_answers_fluent() -> None:
    half, less = (results_table([record(p_harm=0.1, valid=v)]) for v in (0.5, 0.49))
    assert "| 0.10 [0.05, 0.15] |" in half
    assert "| 0.10* [0.05, 0.15] |" in less


def test_seeds_are_shown_as_mean_and_range_beside_the_failed_one() -> None:
    records = [
        record(seed=0, p_harm=0.9),
        record(seed=1, p_harm=0.7),
        record(seed=2, status="sampling_failed", step_failed=12),
    ]
    table = results_table(records)
    assert (
        "| 3 | 0.80 [0.75, 0.85] (0.70 to 0.90); sampling failed at step 12 (1 of 3 seeds) |"
        in table
    )


def test_a_setting_that_differs_becomes_a_column() -> None:
    table = results_table([record(rho=0.5, p_harm=0.2), record(rho=1.0, p_harm=0.9)])
    assert table.startswith("All attacks: model chat, world embedded, data beavertails, samples")
    assert "| rho | Attack | Defence | Judge, greedy (n 100) |" in table
    assert "| 0.5 | PPO | undefended |" in table


def test_prompts_that_are_not_those_reported_are_told_above_the_table() -> None:
    params: dict[str, object] = {"evaluation.split": "validation", "attack.learning_rate": 1e-4}
    rate = record(harm=0.5, params=params, before={"harm": 0.1})
    table = results_table([rate, record(harm=0.6, params=params | {"attack.learning_rate": 1e-5})])
    assert "split=validation" in table.splitlines()[0]
    assert "| PPO | undefended (learning_rate=0.0001) |" in table


def test_a_name_cannot_break_out_of_its_table_cell() -> None:
    table = results_table([record(defence="a|b\n<b>", p_harm=0.5)])
    assert "| a\\|b &lt;b> |" in table


def test_the_terminal_shows_brackets_as_they_are() -> None:
    shown = terminal([record(defence="[red]lisa", harm=0.93, kl_seq_rb=8.4)])
    assert "[red]lisa" in shown
    assert "0.93 [0.88, 0.98]" in shown
    assert "8.4" not in shown


def test_the_csv_keeps_unknown_metrics_and_leaves_failed_runs_empty() -> None:
    records = parse_records(
        [record(p_harm=0.93, distinct_2=0.8), record(seed=1, status="failed", step_failed=3)]
    )
    rows = list(csv.DictReader(io.StringIO(results_csv(records))))
    assert (rows[0]["distinct_2"], rows[0]["p_harm_ci_low"]) == ("0.8", "0.88")
    assert (rows[1]["status"], rows[1]["step_failed"], rows[1]["p_harm"]) == ("failed", "3", "")


def test_a_label_that_an_oracle_of_old_did_not_know_is_missing_and_not_0() -> None:
    known = record(harm=0.5, oracle_compliance=0.4, oracle_refusal=0.6, oracle_partial=0.0)
    *_, line = oracle_table(group_cells(parse_records([known]))).splitlines()
    assert line == "| PPO | undefended | 0.40 | 0.00 | - | 0.60 | - | - | - | - |"
