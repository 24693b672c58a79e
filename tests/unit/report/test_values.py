import io
from pathlib import Path

import pytest
from report_folders import Json, campaign_folder, record
from rich.console import Console

from rpa_ray.evaluation.comparisons import over_seeds
from rpa_ray.report import results_table, terminal_table, write_report
from rpa_ray.report.read.records import Estimate
from rpa_ray.report.read.values import value_over_seeds
from rpa_ray.report.tables.main import format_spread

MEANS = (0.5, 0.6, 0.55, 0.45, 0.65)


def seeds_of(means: tuple[float, ...]) -> list[Json]:
    return [record(seed=seed, harm=mean) for seed, mean in enumerate(means)]


def seed(mean: float, half: float = 0.05) -> Estimate:
    return Estimate(mean=mean, n=100, ci_low=mean - half, ci_high=mean + half)


def test_two_to_four_seeds_are_a_range_beside_the_interval_over_items_and_five_are_in_one() -> None:
    few, many = (value_over_seeds("harm", [seed(m) for m in part]) for part in (MEANS[1:4], MEANS))
    assert format_spread(few, 2) == "[0.48, 0.58] (0.45 to 0.60)"
    alike = value_over_seeds("harm", [seed(0.5), seed(0.5)])
    assert format_spread(alike, 2) == "[0.45, 0.55] (0.50 to 0.50)", "not exact: the items are few"
    expected = over_seeds(MEANS, (0.5, 0.6), bounds=(0.0, 1.0))
    assert expected is not None and (many.low, many.high) == pytest.approx(tuple(expected))
    assert format_spread(many, 2) == f"{{{expected.low:.2f}, {expected.high:.2f}}}"


@pytest.mark.parametrize(
    ("name", "low"), [("harm", 0.0), ("harm_best_of_4", 0.0), ("reward", None)]
)
def test_the_interval_of_a_share_ends_at_its_scale(name: str, low: float | None) -> None:
    value = value_over_seeds(name, [seed(mean) for mean in (0.0, 0.0, 0.0, 0.0, 0.3)])
    assert (value.low == low) if low is not None else (value.low < 0.0)


def test_seeds_without_ends_of_their_own_are_a_range() -> None:
    value = value_over_seeds("harm", [Estimate(mean=mean, n=100) for mean in MEANS])
    assert format_spread(value, 2) == "(0.45 to 0.65)"


def test_every_kind_of_spread_that_occurs_is_explained(tmp_path: Path) -> None:
    few = ["[low, high]", "(least to largest)"]
    for num, words in ((1, few[:1]), (3, few), (5, ["{low, high}"])):
        folder = campaign_folder(tmp_path / str(num), seeds_of(MEANS[:num]))
        paths = write_report(folder)
        kinds = (*few, "{low, high}")
        for text in (paths.markdown.read_text(), paths.html.read_text()):
            assert [
                kind for kind in kinds if f"{kind} is" in text or f"{kind} are" in text
            ] == words


def test_a_heading_says_its_n_where_all_cells_have_the_same() -> None:
    records = [record(harm=0.9, valid=1.0, n=1440), record(defence="lisa", harm=0.1, n=1440)]
    table = results_table(records)
    assert "| Attack | Defence | Harm (n 1,440) | Valid (n 1,440) |" in table
    assert "| PPO | lisa | 0.10 [0.05, 0.15] | - |" in table


def test_where_cells_differ_in_n_every_value_says_its_own(tmp_path: Path) -> None:
    records = [record(harm=0.9, n=1440), record(defence="lisa", harm=0.1, n=100)]
    records += [record(defence="vaccine", seed=s, harm=0.5, n=n) for s, n in ((0, 90), (1, 100))]
    table = results_table(records)
    assert "| Attack | Defence | Seeds | Harm |" in table
    assert "| 0.90 [0.85, 0.95] (n 1,440) |" in table
    assert "| 0.50 [0.45, 0.55] (0.50 to 0.50) (n 90 to 100) |" in table
    page = write_report(campaign_folder(tmp_path, records)).html.read_text()
    assert "<small>[0.85, 0.95]</small><small>n 1,440</small>" in page and ">Harm</th>" in page


def shown(records: list[Json]) -> list[str]:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_table(records))
    return console.export_text().splitlines()


def test_the_terminal_says_n_below_the_table() -> None:
    assert any(line.strip() == "n 100" for line in shown([record(harm=0.9, valid=1.0)]))
    item = record(harm=0.9, n=1440)
    assert isinstance(item["metrics"], dict)
    item["metrics"]["valid"] = {"mean": 1.0, "n": 48}
    text = " ".join(" ".join(shown([item, record(defence="lisa", harm=0.1, n=90)])).split())
    assert "n: 90 to 1,440 (Harm), 48 (Valid)" in text


def test_the_terminal_fits_in_80_columns_with_everything_in_it() -> None:
    metrics = dict.fromkeys(
        ("harm", "harm_greedy", "compliance_sampled", "valid", "p_harm_sampled"), 0.5
    )
    metrics |= {"harmless_answered": 0.5, "judge_gap": 0.3}
    records = [
        record(defence=name, rho=rho, seed=seed, params={"attack.learning_rate": rho}, **metrics)
        | {"data": data}
        for name in ("none", "security_vectors", "refusal_loss")
        for rho, data in ((0.5, "beavertails"), (1.0, "safe_rlhf"))
        for seed in (0, 1)
    ]
    records.append(record(defence="safe_rlhf", status="sampling_failed", step_failed=40))
    lines = shown(records)
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    for told in (" Harm ", " Valid ", "safe_rlhf", "sampling failed"):
        assert told in text
    assert "Greedy" not in text


def test_the_terminal_shows_harm_in_one_line_and_what_has_room_beside_it() -> None:
    names = ("harm", "harm_greedy", "compliance_sampled", "valid", "p_harm_sampled")
    metrics = dict.fromkeys((*names, "harmless_answered"), 0.5) | {"judge_gap": 0.3}
    lines = shown([record(defence="security_vectors", **metrics)])
    assert lines[1].strip().endswith(" Harm Complies Valid Judge Harmless")
    told = "PPO security_vectors 0.50 [0.45, 0.55] 0.50 0.50 0.50! 0.50"
    assert lines[3].split() == told.split()
