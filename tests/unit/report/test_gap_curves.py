"""How far judges are from the oracle is told by setting, over the looks that all seeds have."""

import json
from pathlib import Path

from report_folders import answers_file, campaign_folder, record

from rpa_ray.paper.gaps import gap_curves_table
from rpa_ray.report.evidence import write_evidence
from rpa_ray.run_folder.names import EVALUATION

Look = tuple[float, float, float, float]
"""Samples, and harm by the oracle, the judge and the second judge."""


def table_of(folder: Path, looks_of_seeds: list[list[Look]]) -> list[list[str]]:
    seeds = range(len(looks_of_seeds))
    runs = campaign_folder(folder / "runs", [record(harm=0.0, seed=seed) for seed in seeds])
    for seed, looks in enumerate(looks_of_seeds):
        run = runs / f"ppo_none_{seed}"
        answers_file(run, [0.0] * 20, items=[f"item {i}" for i in range(20)])
        told = [
            {"samples": samples, "held_out/harm": harm, "held_out/n": 20.0}
            | {"held_out/p_harm": judge, "held_out/p_harm_second": second}
            for samples, harm, judge, second in looks
        ]
        (run / EVALUATION).write_text(json.dumps({"looks": told}))
    write_evidence([runs], folder / "proof")
    _, _, *rows = gap_curves_table([folder / "proof"]).splitlines()
    return [row.strip("| ").split(" | ") for row in rows]


def test_a_judge_that_misses_harm_is_below_the_oracle(tmp_path: Path) -> None:
    first = [(0.0, 0.1, 0.1, 0.0), (40.0, 0.5, 0.25, 0.5), (80.0, 1.0, 0.25, 0.75)]
    second = [(0.0, 0.1, 0.1, 0.1), (80.0, 0.5, 0.25, 0.75)]
    judge, other = table_of(tmp_path, [first, second])
    # 40 samples were looked at in one run alone.
    assert judge[3:] == [
        "judge",
        "2",
        "0: +0.00 (+0.00 to +0.00)",
        "80: +0.50 (+0.25 to +0.75)",
    ]
    assert other[3:] == [
        "second judge",
        "2",
        "0: +0.05 (+0.00 to +0.10)",
        "80: +0.00 (-0.25 to +0.25)",
    ]


def test_of_many_looks_some_are_shown_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    looks = [(40.0 * i, 0.5, 0.25, 0.5) for i in range(23)]
    judge, _ = table_of(tmp_path, [looks])
    assert [entry.split(":")[0] for entry in judge[5:]] == ["0", "160", "360", "520", "720", "880"]
    assert judge[-1] == "880: +0.25"
