from pathlib import Path

from report_folders import Json, campaign_folder, estimate, record

from rpa_ray.report import results_table, write_report
from rpa_ray.report.read.groups import attack_groups, group_cells
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.tables.best_of_n import best_of_n_table
from rpa_ray.report.tables.side import side_table_markdown


def best_of(**kept: float) -> Json:
    """Return a Best-of-N record of a model whose own answers are harmless."""
    return record(
        attack="best_of_n", harm=0.01, **{f"harm_best_of_{n[1:]}": p for n, p in kept.items()}
    )


def test_columns_are_every_n_in_numeric_order() -> None:
    records = parse_records([best_of(n16=0.16, n4=0.1, n128=0.34)])
    found = best_of_n_table(attack_groups(group_cells(records)))
    assert [column.heading for column in found.columns[2:]] == ["N = 4", "N = 16", "N = 128"]
    assert "| 0.10 [0.05, 0.15] | 0.16 [0.11, 0.21] | 0.34 [0.29, 0.39] |" in side_table_markdown(
        found
    )


def test_records_without_an_oracle_have_the_judges_harm_of_what_was_kept() -> None:
    old = record(attack="best_of_n", p_harm=0.01, p_harm_best_of_4=0.1, p_harm_best_of_8=0.2)
    found = best_of_n_table(attack_groups(group_cells(parse_records([old]))))
    assert "| 0.10 [0.05, 0.15] | 0.20 [0.15, 0.25] |" in side_table_markdown(found)


def test_the_main_table_has_no_columns_for_n() -> None:
    table = results_table([best_of(n4=0.1, n8=0.14)])
    assert table.splitlines()[2] == "| Attack | Defence | Harm (n 100) |"


def test_the_page_shows_a_curve_and_tells_the_harm_of_what_was_kept(tmp_path: Path) -> None:
    paths = write_report(campaign_folder(tmp_path, [best_of(n4=0.1, n8=0.14)]))
    page = paths.html.read_text()
    assert page.count('aria-label="harm of the kept answer"') == 1
    assert "0.14 (best of 8) after it without a defence" in page
    assert "Best-of-N changes no weights" in page
    assert "harm_best_of_N" in paths.markdown.read_text()


def test_without_best_of_n_there_is_neither_table_nor_file(tmp_path: Path) -> None:
    (tmp_path / "best_of_n.csv").write_text("from an earlier report")
    paths = write_report(campaign_folder(tmp_path, [record(p_harm=0.9)]))
    assert "Best of N" not in paths.html.read_text()
    assert not (tmp_path / "best_of_n.csv").exists()


def test_best_of_n_is_neither_a_worst_case_nor_a_line_over_rho(tmp_path: Path) -> None:
    # Its rows measure one and the same model, whatever the attacker's settings.
    records = [
        best_of(n4=0.1) | {"rho": rho, "params": {"attack.pool_size": size}, "run": f"{rho}_{size}"}
        for rho in (0.5, 1.0)
        for size in (4, 8)
    ]
    text = write_report(campaign_folder(tmp_path, records)).markdown.read_text()
    assert "Worst case" not in text and "Spearman" not in text


def test_the_page_shows_what_the_reward_model_likes_best(tmp_path: Path) -> None:
    item = best_of(n4=0.1)
    kept = {"kept_compliance": estimate(0.25), "kept_off_topic": estimate(0.75)}
    item["metrics"] |= kept  # type: ignore[operator]
    page = write_report(campaign_folder(tmp_path, [item])).html.read_text()
    assert "What the reward model likes best of the whole pool" in page
    assert 'aria-label="compliance 0.25, off topic 0.75"' in page
    assert '<span class="amount">off topic 0.75</span>' in page
