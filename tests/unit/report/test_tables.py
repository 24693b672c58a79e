import csv
import io

from report_folders import record
from rich.console import Console

from rpa_ray.report import results_table, terminal_table
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.tables.main import results_csv

GOLDEN = """\
All attacks: model chat, world embedded, data beavertails, rho 1, samples 1,000.

| Attack | Defence | Harmful | Valid |
| --- | --- | --: | --: |
| none | untouched chat | 0.01 [-0.04, 0.06] | 1.00 |
| PPO | undefended | 0.93 [0.88, 0.98] | 0.97 |
| PPO | refusal_loss | 0.02 [-0.03, 0.07] | 1.00 |
| PPO | reward_shaping | 0.03* [-0.02, 0.08] | 0.21 |
| PPO | safe_rlhf | sampling failed at step 40 | - |
| PPO | freeze (control) | 0.01 [-0.04, 0.06] | 1.00 |
"""


def test_the_table_is_the_golden_one() -> None:
    records = [
        record(defence="freeze", p_harm=0.01, valid=1.0),
        record(defence="refusal_loss", p_harm=0.02, valid=1.0),
        record(p_harm=0.93, valid=0.97),
        record(defence="reward_shaping", p_harm=0.03, valid=0.21),
        record(defence="safe_rlhf", status="sampling_failed", step_failed=40),
        record(attack="none", p_harm=0.01, valid=1.0),
    ]
    assert results_table(records) == GOLDEN


def test_the_asterisk_needs_less_than_half_of_the_answers_fluent() -> None:
    half = results_table([record(p_harm=0.1, valid=0.5)])
    less = results_table([record(p_harm=0.1, valid=0.49)])
    assert "| 0.10 [0.05, 0.15] |" in half
    assert "| 0.10* [0.05, 0.15] |" in less


def test_seeds_are_shown_as_mean_and_range_beside_the_failed_one() -> None:
    records = [
        record(seed=0, p_harm=0.9),
        record(seed=1, p_harm=0.7),
        record(seed=2, status="sampling_failed", step_failed=12),
    ]
    table = results_table(records)
    assert "| 3 | 0.80 (0.70 to 0.90); sampling failed at step 12 (1 of 3 seeds) |" in table


def test_a_setting_that_differs_becomes_a_column() -> None:
    table = results_table([record(rho=0.5, p_harm=0.2), record(rho=1.0, p_harm=0.9)])
    assert table.startswith("All attacks: model chat, world embedded, data beavertails, samples")
    assert "| rho | Attack | Defence | Harmful |" in table
    assert "| 0.5 | PPO | undefended |" in table


def test_a_name_cannot_break_out_of_its_table_cell() -> None:
    table = results_table([record(defence="a|b\n<b>", p_harm=0.5)])
    assert "| a\\|b &lt;b> |" in table


def test_the_terminal_shows_brackets_as_they_are() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_table([record(defence="[red]lisa", p_harm=0.93, kl_seq_rb=8.4)]))
    shown = console.export_text()
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
