import csv
from pathlib import Path

import numpy as np
import pytest
from report_folders import Json, answers_file, campaign_folder, record

from rpa_ray.evaluation.comparisons import holm, paired_difference
from rpa_ray.report import write_report
from rpa_ray.report.read.comparisons import read_prompt_values
from rpa_ray.report.read.folder import Campaign, read_campaign
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.differences import differences_table, pairs_table
from rpa_ray.report.tables.side import Entry, SideTable, side_table_markdown

HIGH = [0.9, 0.8, 1.0, 0.7, 0.9, 1.0, 0.8, 0.9]
LOW = [0.1, 0.0, 0.2, 0.1, 0.0, 0.3, 0.1, 0.2]
MIDDLE = [0.5, 0.4, 0.6, 0.5, 0.4, 0.6, 0.5, 0.6]
MEASURED = {"none": HIGH, "lisa": LOW, "vaccine": MIDDLE, "freeze": [0.0] * 8}


def folder_of(folder: Path, measured: dict[str, list[float]], **more: object) -> Path:
    """Write a campaign of one attack, with the answers of every run."""
    records = [record(defence=name, harm=sum(v) / len(v)) for name, v in measured.items()]
    for item, values in zip(records, measured.values(), strict=True):
        answers_file(folder / str(item["run"]), values, **more)  # type: ignore[arg-type]
    return campaign_folder(folder, records)


def by_defence(table: SideTable) -> dict[Entry, dict[str, Entry]]:
    names = [column.name for column in table.columns]
    return {row[1]: dict(zip(names, row, strict=True)) for row in table.rows}


def mean(entry: Entry) -> float:
    assert isinstance(entry, CellValue)
    return entry.mean


def test_every_defence_and_control_is_compared_with_undefended_and_with_freeze(
    tmp_path: Path,
) -> None:
    table = differences_table(read_campaign(folder_of(tmp_path, MEASURED)))
    rows = by_defence(table)
    assert list(rows) == ["lisa", "vaccine", "freeze (control)"]
    assert mean(rows["lisa"]["to_undefended"]) == pytest.approx(np.mean(LOW) - np.mean(HIGH))
    assert mean(rows["vaccine"]["to_freeze"]) == pytest.approx(np.mean(MIDDLE))
    assert (rows["freeze (control)"]["to_freeze"], rows["freeze (control)"]["p_freeze"]) == (
        None,
        None,
    )


def test_p_is_adjusted_for_all_comparisons_of_the_table(tmp_path: Path) -> None:
    rows = by_defence(differences_table(read_campaign(folder_of(tmp_path, MEASURED))))
    pairs = [("lisa", "none"), ("lisa", "freeze"), ("vaccine", "none"), ("vaccine", "freeze")]
    pairs.append(("freeze", "none"))
    raw = [paired_difference(MEASURED[a], MEASURED[b]) for a, b in pairs]
    lisa, vaccine, freeze = rows.values()
    found = [lisa["p_undefended"], lisa["p_freeze"], vaccine["p_undefended"], vaccine["p_freeze"]]
    found.append(freeze["p_undefended"])
    assert found == pytest.approx(holm([one.p_value for one in raw]))
    assert lisa["smallest_detectable"] == pytest.approx(raw[0].smallest_detectable)
    table = differences_table(read_campaign(tmp_path))
    assert "for all 5 comparisons of this table" in table.intro
    assert "on the same 8 prompts about 8 items" in table.intro
    assert "Within these seeds: random are items and prompts" in table.intro


def test_prompts_about_one_item_count_once(tmp_path: Path) -> None:
    items = ["a", "a", "b", "b", "c", "c", "d", "d"]
    table = differences_table(read_campaign(folder_of(tmp_path, MEASURED, items=items)))
    expected = paired_difference(LOW, HIGH, items=items)
    found = by_defence(table)["lisa"]["to_undefended"]
    assert isinstance(found, CellValue)
    assert (found.low, found.high) == pytest.approx((expected.ci_low, expected.ci_high), abs=0.01)
    assert "8 prompts about 4 items" in table.intro
    assert by_defence(table)["lisa"]["smallest_detectable"] is None


def test_a_seed_that_one_of_two_rows_lacks_is_left_out_of_their_difference(tmp_path: Path) -> None:
    records = [
        record(harm=0.9),
        record(seed=1, status="sampling_failed", step_failed=3),
        record(defence="lisa", harm=0.9),
        record(defence="lisa", seed=1, harm=0.1),
        record(defence="vaccine", seed=1, harm=0.1),
    ]
    for item, values in zip(records, (HIGH, None, HIGH, LOW, LOW), strict=True):
        if values is not None:
            answers_file(tmp_path / str(item["run"]), values)
    campaign = read_campaign(campaign_folder(tmp_path, records))
    rows = by_defence(differences_table(campaign))
    assert list(rows) == ["lisa"]
    assert mean(rows["lisa"]["to_undefended"]) == 0.0
    (pairs,) = campaign.comparisons.pairs
    assert [one.difference.mean for one in pairs.compared] == [0.0]


def test_seeds_are_averaged_prompt_by_prompt_before_anything_is_compared(tmp_path: Path) -> None:
    records = [record(defence=d, seed=s, harm=0.5) for d in ("none", "lisa") for s in (0, 1)]
    seeds = {"none": (HIGH, HIGH), "lisa": (LOW, MIDDLE)}
    for item in records:
        values = seeds[str(item["defence"])][int(str(item["seed"]))]
        answers_file(tmp_path / str(item["run"]), values)
    campaign = read_campaign(campaign_folder(tmp_path, records))
    averaged = np.add(LOW, MIDDLE) / 2
    expected = paired_difference(averaged, HIGH)
    found = by_defence(differences_table(campaign))["lisa"]
    assert mean(found["to_undefended"]) == pytest.approx(expected.mean)
    assert found["p_undefended"] == expected.p_value


def test_a_prompt_counts_by_the_mean_of_its_sampled_answers(tmp_path: Path) -> None:
    answers_file(tmp_path, LOW, num_samples=3)
    found = read_prompt_values(tmp_path / "answers.parquet")
    assert found is not None and found.by_oracle
    assert [found.values[i, f"item {i}"] for i in range(8)] == pytest.approx(LOW, abs=1e-6)


def test_without_an_oracle_the_judge_is_compared_and_named(tmp_path: Path) -> None:
    table = differences_table(read_campaign(folder_of(tmp_path, MEASURED, is_judged=True)))
    assert table.intro.startswith("Harm (by the judge) of the model under a defence")
    assert mean(by_defence(table)["lisa"]["to_undefended"]) == pytest.approx(-0.75)


def test_cells_without_answers_or_with_other_prompts_are_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, MEASURED)
    (folder / "ppo_vaccine_0" / "answers.parquet").unlink()
    answers_file(folder / "ppo_freeze_0", HIGH[:4])
    table = differences_table(read_campaign(folder))
    assert list(by_defence(table)) == ["lisa"]
    assert "to_freeze" not in [column.name for column in table.columns]
    (folder / "ppo_none_0" / "answers.parquet").unlink()
    assert differences_table(read_campaign(folder)).rows == []


def test_a_cell_is_compared_under_its_own_settings_of_the_attack_alone(tmp_path: Path) -> None:
    records: list[Json] = []
    for rate, values in ((0.1, HIGH), (0.2, MIDDLE)):
        for name, own in (("none", values), ("lisa", LOW)):
            item = record(defence=name, params={"attack.learning_rate": rate}, harm=0.5)
            item["run"] = f"{name}_{rate}"
            answers_file(tmp_path / str(item["run"]), own)
            records.append(item)
    rows = by_defence(differences_table(read_campaign(campaign_folder(tmp_path, records))))
    found = [mean(row["to_undefended"]) for row in rows.values()]
    assert found == pytest.approx([np.mean(LOW) - np.mean(v) for v in (HIGH, MIDDLE)])


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.parquet").write_text("broken")
    with pytest.raises(ValueError, match=r"answers\.parquet must hold the answers of a run"):
        read_prompt_values(tmp_path / "answers.parquet")


def pairs_campaign(folder: Path) -> Campaign:
    same = [value + 0.01 * (-1) ** i for i, value in enumerate(MIDDLE)]
    return read_campaign(folder_of(folder, MEASURED | {"refusal_loss": same}))


def test_pairs_that_are_told_apart_are_listed_with_less_harm_first(tmp_path: Path) -> None:
    table = pairs_table(pairs_campaign(tmp_path))
    told = [row[1:4] for row in table.rows]
    assert told == [["2 of 3", "lisa", other] for other in ("vaccine", "refusal_loss")]
    raw = paired_difference(LOW, MIDDLE)
    assert mean(table.rows[0][4]) == pytest.approx(raw.mean)
    assert table.rows[0][5] == pytest.approx(3 * raw.p_value)
    assert "8 prompts about 8 items" in table.intro


def test_a_small_difference_in_every_item_is_not_told_apart(tmp_path: Path) -> None:
    more = [value + 0.02 for value in MIDDLE * 2]
    folder = folder_of(tmp_path, {"none": HIGH * 2, "lisa": MIDDLE * 2, "vaccine": more})
    (pairs,) = read_campaign(folder).comparisons.pairs
    (one,) = pairs.compared
    assert one.adjusted_p < 0.001
    assert one.difference.ci_low < 0.0 < one.difference.ci_high
    assert not one.is_shown
    assert pairs_table(read_campaign(folder)).rows[0][1:4] == ["0 of 1", None, None]


def test_an_attack_under_which_no_pair_is_told_apart_says_so(tmp_path: Path) -> None:
    measured = {"none": HIGH[:4], "lisa": LOW[:4], "vaccine": MIDDLE[:4]}
    table = pairs_table(read_campaign(folder_of(tmp_path, measured)))
    assert table.rows == [["PPO, rho 1, 1,000 samples", "0 of 1", None, None, None, None]]


def test_both_tables_are_in_every_form_of_the_report(tmp_path: Path) -> None:
    paths = write_report(folder_of(tmp_path, MEASURED))
    text, page = paths.markdown.read_text(), paths.html.read_text()
    for title in ("Differences of harm", "Defences told apart"):
        assert f"## {title}" in text
        assert page.index("<h2>Results</h2>") < page.index(f"<h2>{title}</h2>")
    row = next(
        line
        for line in side_table_markdown(differences_table(read_campaign(tmp_path))).splitlines()
        if "| lisa |" in line
    )
    assert row in text and "| -0.75 [-0.83, -0.32] | 0.0391 |" in row
    with (tmp_path / "differences.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["to_undefended"]) == pytest.approx(-0.75)
    assert {"to_undefended_low", "p_undefended", "p_freeze", "smallest_detectable"} <= first.keys()
    assert (tmp_path / "pairs.csv").is_file()


def test_a_folder_without_answers_has_neither_table(tmp_path: Path) -> None:
    text = write_report(campaign_folder(tmp_path, [record(harm=0.9)])).markdown.read_text()
    assert "Differences of harm" not in text and not (tmp_path / "differences.csv").exists()
