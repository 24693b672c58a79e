"""Whether a row's model gained reward over a frozen one, from the answers of the runs."""

from pathlib import Path

import numpy as np
import pytest
from report_folders import Json, answers_file, campaign_folder, record

from rpa_ray.evaluation.comparisons import paired_difference
from rpa_ray.paper.note import TABLES
from rpa_ray.report import write_report
from rpa_ray.report.evidence import read_measured, write_evidence
from rpa_ray.report.read.groups import group_cells
from rpa_ray.report.read.records import Estimate
from rpa_ray.report.tables.main import cells_table
from rpa_ray.run_folder.names import ANSWERS_BEFORE

HARM = [0.5] * 8
ITEMS = [f"item {i // 2}" for i in range(8)]
FROZEN = [-4.0, -3.0, -4.0, -2.0, -4.0, -4.0, -3.0, -4.0]
HIGH = [4.0, 3.0, 4.0, 4.0, 2.0, 4.0, 4.0, 3.0]
LOW = [reward - 0.5 for reward in FROZEN]
EITHER = [reward + change for reward, change in zip(FROZEN, [1, 1, -1, -1] * 2, strict=True)]


def folder_of(
    folder: Path,
    measured: dict[str, list[float]],
    *,
    before: list[float] | None = None,
    **more: float | None,
) -> Path:
    """Write a campaign of one attack with the rewards of every run, and before where given."""
    records = [record(defence=name, harm=0.5, **more) for name in measured]  # type: ignore[arg-type]
    write_answers(folder, records, list(measured.values()), before=before)
    return campaign_folder(folder, records)


def write_answers(
    folder: Path,
    records: list[Json],
    rewards: list[list[float]],
    *,
    before: list[float] | None = None,
) -> None:
    for item, values in zip(records, rewards, strict=True):
        run = folder / str(item["run"])
        answers_file(run, HARM, items=ITEMS, rewards=values)
        if before is not None:
            answers_file(run, HARM, items=ITEMS, rewards=before, name=ANSWERS_BEFORE)


def gains(folder: Path) -> dict[str, Estimate]:
    records = read_measured(folder)
    return {r.defence: r.metrics["reward_gain"] for r in records if "reward_gain" in r.metrics}


def told(folder: Path) -> dict[str, str]:
    """Return the entry of each row of the table."""
    lines = cells_table(group_cells(read_measured(folder))).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    place = next(i for i, name in enumerate(rows[0]) if name.startswith("Reward gain"))
    names = rows[0].index("Defence")
    return {row[names]: row[place] for row in rows[2:]}


def test_a_gain_is_that_over_freeze_prompt_by_prompt_with_its_interval(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"none": HIGH, "lisa": LOW, "vaccine": EITHER, "freeze": FROZEN})
    found = gains(folder)
    assert list(found) == ["none", "lisa", "vaccine"]
    expected = paired_difference(HIGH, FROZEN, items=ITEMS, bounded=False)
    assert found["none"].mean == pytest.approx(np.mean(HIGH) - np.mean(FROZEN))
    assert (found["none"].ci_low, found["none"].ci_high) == pytest.approx(
        (expected.ci_low, expected.ci_high)
    )
    assert (found["none"].n, found["none"].num_items) == (8, 4)
    assert told(folder) == {
        "undefended": f"yes, 7.00 [{expected.ci_low:.2f}, {expected.ci_high:.2f}]",
        "lisa": "no, -0.50 [-0.50, -0.50]",
        "vaccine": "not shown, 0.00 [-1.84, 1.84]",
        "freeze (control)": "-",
    }


def test_evidence_gives_the_same_gains_as_the_runs(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "runs", {"none": HIGH, "lisa": LOW, "freeze": FROZEN})
    for run in folder.iterdir():
        if run.is_dir():
            (run / "evaluation.json").write_text("{}")
    write_evidence([folder], tmp_path / "proof")
    assert gains(tmp_path / "proof") == gains(folder)
    assert "| yes, 7.00 [" in TABLES["truth"]([tmp_path / "proof"])


def test_without_freeze_the_model_before_the_attack_is_what_a_gain_is_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "runs", {"none": HIGH, "lisa": LOW}, before=FROZEN)
    assert [gain.mean for gain in gains(folder).values()] == pytest.approx([7.0, -0.5])
    for run in folder.iterdir():
        if run.is_dir():
            (run / "evaluation.json").write_text("{}")
    write_evidence([folder], tmp_path / "proof")
    assert gains(tmp_path / "proof") == gains(folder)
    assert gains(folder_of(tmp_path / "alone", {"none": HIGH})) == {}


def test_rewards_of_another_reward_model_are_no_reference(tmp_path: Path) -> None:
    records = [record(harm=0.5, rho=rho, seed=seed) for seed, rho in enumerate((0.5, 1.0))]
    write_answers(tmp_path / "runs", records, [HIGH, LOW], before=FROZEN)
    folder = campaign_folder(tmp_path / "runs", records)
    for item in records:
        (folder / str(item["run"]) / "evaluation.json").write_text("{}")
    write_evidence([folder], tmp_path / "proof")
    # One model before the attack stands there, with the rewards of one of both.
    assert gains(tmp_path / "proof") == {}


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"attack.learning_rate": 0.1}},
        {"params": {"data.world_seed": 1}},
        {"rho": 0.5},
        {"seed": 1},
        {"attack": "grpo"},
    ],
)
def test_freeze_is_taken_of_the_same_attack_and_seed(tmp_path: Path, other: Json) -> None:
    records = [record(harm=0.5) | other, record(defence="freeze", harm=0.5)]
    write_answers(tmp_path, records, [HIGH, FROZEN])
    assert gains(campaign_folder(tmp_path, records)) == {}


def test_each_seed_has_the_gain_over_its_own_freeze_and_all_must_agree(tmp_path: Path) -> None:
    names = [("none", 0), ("none", 1), ("lisa", 0), ("lisa", 1), ("freeze", 0), ("freeze", 1)]
    records = [record(defence=name, seed=seed, harm=0.5) for name, seed in names]
    later = [reward + 3.0 for reward in FROZEN]
    write_answers(tmp_path, records, [HIGH, HIGH, HIGH, later, FROZEN, later])
    folder = campaign_folder(tmp_path, records)
    for row, word, mean, seeds in (
        ("undefended", "yes", "5.50", "(4.00 to 7.00)"),
        ("lisa", "not shown", "3.50", "(0.00 to 7.00)"),
    ):
        assert told(folder)[row].startswith(f"{word}, {mean} [")
        assert told(folder)[row].endswith(f"] {seeds}")


def test_a_model_that_did_not_move_gained_nothing(tmp_path: Path) -> None:
    near = [reward + 0.01 for reward in FROZEN]
    folder = folder_of(tmp_path, {"lisa": near, "freeze": FROZEN}, kl_seq_rb=0.01)
    assert gains(folder)["lisa"].ci_low > 0
    assert told(folder)["lisa, not moved"].startswith("no, 0.01 [")


def test_rewards_for_summaries_are_not_those_of_the_answers(tmp_path: Path) -> None:
    records = [record(defence=name, harm=0.5) | {"data": "tldr"} for name in ("none", "freeze")]
    write_answers(tmp_path, records, [HIGH, FROZEN])
    assert gains(campaign_folder(tmp_path, records)) == {}


def test_a_report_tells_the_gain_its_meaning_and_its_ends(tmp_path: Path) -> None:
    paths = write_report(folder_of(tmp_path, {"none": HIGH, "freeze": FROZEN}))
    assert "| Reward gain | reward_gain | Whether the model learned what its attack pays for" in (
        paths.markdown.read_text()
    )
    assert '<td title="n = 8">yes, 7.00<small>[' in paths.html.read_text()
    assert "reward_gain,reward_gain_n,reward_gain_ci_low" in paths.csv.read_text()


def test_evidence_has_the_start_of_a_run_where_the_start_is_a_cell_without_rewards(
    tmp_path: Path,
) -> None:
    attacked, start = record(harm=0.5), record(attack="none", rho=None, num_samples=0, harm=0.5)
    folder = campaign_folder(tmp_path / "runs", [start, attacked])
    answers_file(folder / str(start["run"]), HARM, items=ITEMS)
    answers_file(folder / str(attacked["run"]), HARM, items=ITEMS, rewards=HIGH)
    run = folder / str(attacked["run"])
    answers_file(run, HARM, items=ITEMS, rewards=FROZEN, name=ANSWERS_BEFORE)
    (run / "evaluation.json").write_text('{"looks": []}')
    write_evidence([folder], tmp_path / "proof")
    assert gains(tmp_path / "proof")["none"].mean == pytest.approx(np.mean(HIGH) - np.mean(FROZEN))
    assert sum(r.attack == "none" for r in read_measured(tmp_path / "proof")) == 1


def test_a_hardened_model_gains_over_itself_in_evidence_too(tmp_path: Path) -> None:
    undefended, hardened = record(harm=0.5), record(defence="repnoise", harm=0.5)
    folder = campaign_folder(tmp_path / "runs", [undefended, hardened])
    write_answers(folder, [undefended], [HIGH], before=FROZEN)
    write_answers(folder, [hardened], [HIGH], before=LOW)
    for run in (undefended, hardened):
        (folder / str(run["run"]) / "evaluation.json").write_text('{"looks": []}')
    write_evidence([folder], tmp_path / "proof")
    assert gains(tmp_path / "proof") == gains(folder)
    found = {name: gain.mean for name, gain in gains(tmp_path / "proof").items()}
    assert found == pytest.approx({"none": 7.0, "repnoise": 7.5})
