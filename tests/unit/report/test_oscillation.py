"""A reward that swings, one that wanders and one that does not move are told apart."""

import json
import math
from pathlib import Path
from random import Random

import pytest
from report_folders import answers_file, campaign_folder, record

from rpa_ray.paper.oscillation import oscillation_table
from rpa_ray.report.evidence import write_evidence
from rpa_ray.run_folder.names import EVALUATION

NUM_LOOKS = 100


def row_of(folder: Path, rewards: list[float], refused: list[float]) -> list[str]:
    runs = campaign_folder(folder / "runs", [record(harm=0.0)])
    run = runs / "ppo_none_0"
    answers_file(run, [0.0] * 20, items=[f"item {i}" for i in range(20)])
    looks = [
        {"samples": 40.0 * i, "held_out/reward": reward, "held_out/refusal_rate": share}
        | {"held_out/harm": 0.0, "held_out/harm_low": 0.0, "held_out/harm_high": 0.1}
        | {"held_out/n": 20.0}
        for i, (reward, share) in enumerate(zip(rewards, refused, strict=True))
    ]
    (run / EVALUATION).write_text(json.dumps({"looks": looks}))
    write_evidence([runs], folder / "proof")
    *_, row = oscillation_table([folder / "proof"]).splitlines()
    return row.strip("| ").split(" | ")


def test_a_wave_has_its_period_and_the_refusals_that_go_against_it(tmp_path: Path) -> None:
    noise = Random(0)
    wave = [math.sin(2 * math.pi * i / 10) + noise.gauss(0, 0.5) for i in range(NUM_LOOKS)]
    row = row_of(tmp_path, wave, [0.5 - 0.1 * height for height in wave])
    assert row[2] == "80"
    assert (row[5], row[6], row[7]) == ("400", "0.001", "-1.00")


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_noise_has_none_however_long_it_remembers(memory: float, tmp_path: Path) -> None:
    noise, rewards = Random(1), [0.0]
    for _ in range(NUM_LOOKS - 1):
        rewards.append(memory * rewards[-1] + noise.gauss(0, 1))
    row = row_of(tmp_path, rewards, [0.5] * NUM_LOOKS)
    assert float(row[6]) > 0.01
    assert row[7] == "-"


def test_a_reward_that_does_not_move_has_no_autocorrelation(tmp_path: Path) -> None:
    row = row_of(tmp_path, [1.0] * NUM_LOOKS, [0.5] * NUM_LOOKS)
    assert row[5:] == ["-", "-", "-"]
