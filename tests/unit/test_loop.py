import json
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.learner.step import SamplingFailed
from rpa_ray.loop import TrainingFailed, train
from rpa_ray.metrics import JsonLines
from rpa_ray.types import Metrics


class Numbers:
    """A source and a learner that write down in which order they are called."""

    def __init__(self, *, breaks_at: int | None = None, diary: list[str] | None = None) -> None:
        self.breaks_at = breaks_at
        self.diary: list[str] = diary if diary is not None else []

    def next_batch(self, step: int) -> tuple[str, Metrics]:
        self.diary.append(f"batch {step}")
        return f"batch {step}", {"reward/mean": float(step), "time/rollout_s": 0.5}

    def step(self, batch: str) -> Metrics:
        self.diary.append(f"learn {batch}")
        if batch == f"batch {self.breaks_at}":
            raise SamplingFailed("the loss was not finite")
        return {"policy/loss": -1.0}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(numbers: Any, path: Path, **rest: Any) -> None:
    log = JsonLines(path, enabled=True)
    train(numbers, numbers, num_steps=3, samples_per_step=8, log=log, **rest)


def test_one_line_a_step_with_samples_and_times(tmp_path: Path) -> None:
    run(Numbers(), tmp_path / "metrics.jsonl")
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["samples"]) for line in lines] == [(0, 8), (1, 16), (2, 24)]
    assert [line["reward/mean"] for line in lines] == [0.0, 1.0, 2.0]
    assert all(line["policy/loss"] == -1.0 for line in lines)
    assert all(0 <= line["time/learner_s"] <= line["time/step_s"] for line in lines)


def test_weights_are_pushed_before_each_batch_is_made(tmp_path: Path) -> None:
    numbers = Numbers()

    def push(step: int) -> Metrics:
        numbers.diary.append(f"push {step}")
        return {"sync/bytes": 64.0}

    run(numbers, tmp_path / "metrics.jsonl", push=push)
    assert numbers.diary[:6] == [
        *("push 0", "batch 0", "learn batch 0"),
        *("push 1", "batch 1", "learn batch 1"),
    ]
    assert lines_of(tmp_path / "metrics.jsonl")[2]["sync/bytes"] == 64.0


def test_a_failure_names_its_step_and_keeps_the_steps_before(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"^step 1: the loss was not finite$") as failure:
        run(Numbers(breaks_at=1), tmp_path / "metrics.jsonl")
    assert failure.value.step == 1
    assert failure.value.reason == "the loss was not finite"
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [0]


def test_another_error_is_no_result(tmp_path: Path) -> None:
    class Broken(Numbers):
        def step(self, batch: str) -> Metrics:
            raise KeyError("bug")

    with pytest.raises(KeyError):
        run(Broken(), tmp_path / "metrics.jsonl")


def test_progress_hears_of_every_step(tmp_path: Path) -> None:
    heard = []
    run(
        Numbers(),
        tmp_path / "metrics.jsonl",
        progress=lambda step, metrics: heard.append((step, metrics["reward/mean"])),
    )
    assert heard == [(0, 0.0), (1, 1.0), (2, 2.0)]
