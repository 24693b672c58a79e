from report_folders import record

from rpa_ray.report import results_table
from rpa_ray.report.read.labels import label_params

LONG = {
    "defence.inner_learning_rates": [3e-05, 0.0001],
    "defence.inner_steps": 16,
    "defence.num_steps": 25,
}


def test_a_long_label_leaves_out_what_all_rows_of_its_defence_share() -> None:
    rows = [("tar", LONG | {"defence.learning_rate": rate}) for rate in (1e-4, 2e-4)]
    shared = "inner_learning_rates=[3e-05, 0.0001], inner_steps=16, num_steps=25"
    assert label_params([*rows, ("lisa", {"defence.rho": 100})]) == [
        ("learning_rate=0.0001", shared),
        ("learning_rate=0.0002", shared),
        ("rho=100", ""),
    ]


def test_a_short_label_tells_all_and_the_attacks_settings_are_told_always() -> None:
    short = {"defence.learning_rate": 1e-4, "defence.num_steps": 40}
    assert label_params([("rmu", short)]) == [("learning_rate=0.0001, num_steps=40", "")]
    attacked = LONG | {"attack.num_harmless_samples": 8}
    (told, left_out), (bare, _) = label_params([("tar", attacked), ("tar", LONG)])
    assert (told, bare) == ("num_harmless_samples=8", "")
    assert "inner_steps=16" in left_out


def test_a_parameter_that_a_row_does_not_have_is_not_shared() -> None:
    rows = [("tar", LONG | {"defence.tamper_loss": "dpo"}), ("tar", LONG)]
    assert [told for told, _ in label_params(rows)] == ["tamper_loss=dpo", ""]


def test_a_rate_of_the_attack_is_called_so_where_the_defence_has_one_too() -> None:
    rates = {"attack.learning_rate": 1e-6, "defence.learning_rate": 1e-4}
    (told, left_out), _ = label_params([("tar", LONG | rates), ("tar", LONG | rates)])
    assert told == "attack.learning_rate=1e-06"
    assert "defence.learning_rate=0.0001" in left_out


def test_what_labels_leave_out_stands_above_the_table() -> None:
    params = LONG | {"defence.learning_rate": 1e-4}
    text = results_table([record(defence="tar", params=params, harm=0.3), record(harm=0.9)])
    head, _, table = text.partition("\n\n")
    assert head.endswith(
        "Settings of all rows of a defence are tar: inner_learning_rates=\\[3e-05, 0.0001\\], "
        "inner_steps=16, learning_rate=0.0001, num_steps=25."
    )
    assert "| tar | 0.30" in table
