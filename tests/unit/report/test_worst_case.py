from report_folders import Json, record

from rpa_ray.report.read.groups import attack_groups, group_cells
from rpa_ray.report.read.records import parse_records
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.side import Entry, SideTable
from rpa_ray.report.tables.worst_case import worst_cases


def tried(rate: float, **more: float | str | int) -> Json:
    return record(params={"attack.learning_rate": rate}, **more)  # type: ignore[arg-type]


def table(*records: Json) -> SideTable:
    return worst_cases(attack_groups(group_cells(parse_records(records))))


def row(found: SideTable, defence: str) -> dict[str, Entry]:
    names = [column.name for column in found.columns]
    (held,) = [dict(zip(names, row, strict=True)) for row in found.rows if row[1] == defence]
    return held


def mean(entry: Entry) -> float:
    assert isinstance(entry, CellValue)
    return entry.mean


def test_the_worst_setting_is_harmful_and_fluent_not_just_harmful() -> None:
    found = table(
        tried(1e-5, p_harm_sampled=0.2, harm=0.2, valid=1.0),
        tried(1e-4, p_harm_sampled=0.8, harm=0.7, valid=0.9),
        tried(1e-3, p_harm_sampled=0.9, harm=0.3, valid=0.3),
    )
    worst = row(found, "undefended")
    assert (worst["worst_setting"], worst["num_settings"]) == ("learning_rate=0.0001", 3)
    measured = [mean(worst[name]) for name in ("harm", "p_harm_sampled", "valid")]
    assert measured == [0.7, 0.8, 0.9]


def test_without_an_oracle_the_worst_setting_is_judged_harmful_and_fluent() -> None:
    found = table(
        tried(1e-4, p_harm_sampled=0.8, harm_fluent=0.7, valid=0.9),
        tried(1e-3, p_harm_sampled=0.9, harm_fluent=0.3, valid=0.3),
    )
    worst = row(found, "undefended")
    assert (worst["worst_setting"], mean(worst["harm_fluent"])) == ("learning_rate=0.0001", 0.7)
    assert "highest mean of Judge, fluent" in found.intro


def test_records_of_old_rank_settings_by_compliance_before_the_judge() -> None:
    found = table(
        tried(1e-4, p_harm_oracle_sampled=0.6, harm_fluent=0.2),
        tried(1e-3, p_harm_oracle_sampled=0.1, harm_fluent=0.9),
    )
    assert row(found, "undefended")["worst_setting"] == "learning_rate=0.0001"


def test_a_setting_that_failed_is_counted_and_named() -> None:
    found = table(tried(1e-5, harm=0.2), tried(1e-3, status="sampling_failed", step_failed=7))
    worst = row(found, "undefended")
    assert (worst["num_settings"], worst["num_failed"]) == (2, 1)
    assert worst["failed"] == "learning_rate=0.001: sampling failed at step 7"


def test_a_defence_of_which_every_setting_failed_is_still_listed() -> None:
    found = table(*(tried(rate, status="failed", step_failed=1) for rate in (0.1, 0.2)))
    worst = row(found, "undefended")
    assert (worst["worst_setting"], worst["num_failed"], worst["p_harm_sampled"]) == (None, 2, None)


def test_settings_of_a_defence_stay_apart() -> None:
    found = table(
        *(
            record(
                defence="lisa",
                params={"attack.learning_rate": rate, "defence.alpha": alpha},
                harm=rate * alpha,
            )
            for rate in (0.1, 0.2)
            for alpha in (1.0, 2.0)
        )
    )
    worst = [mean(row(found, f"lisa (alpha={alpha})")["harm"]) for alpha in (1, 2)]
    assert worst == [0.2, 0.4]


def test_seeds_of_a_setting_are_averaged_before_the_worst_is_taken() -> None:
    found = table(
        *(tried(0.1, seed=seed, harm=p) for seed, p in ((0, 0.9), (1, 0.1))),
        *(tried(0.2, seed=seed, harm=p) for seed, p in ((0, 0.6), (1, 0.6))),
    )
    assert row(found, "undefended")["worst_setting"] == "learning_rate=0.2"


def test_attacks_with_one_setting_each_have_no_worst_case() -> None:
    # The learning rate differs between the attacks, not within one.
    ppo, sft = tried(1e-5, attack="ppo", harm=0.2), tried(1e-4, attack="sft", harm=1)
    assert table(ppo, sft).rows == []
