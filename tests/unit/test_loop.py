import json
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.learner.step import SamplingFailed
from rpa_ray.loop import TrainingFailed, train
from rpa_ray.run_folder.files import JsonLines
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


class Notebook:
    """Checkpoints that only write down when they are asked."""

    def __init__(self, *, next_step: int = 0, diary: list[str] | None = None) -> None:
        self.next_step = next_step
        self.diary: list[str] = diary if diary is not None else []

    def restore(self) -> int:
        return self.next_step

    def is_due(self) -> bool:
        self.diary.append("asked")
        return self.diary.count("asked") == 2

    def save(self, next_step: int, *, aside: bool = False) -> None:
        self.diary.append(f"save {next_step}{' aside' if aside else ''}")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(numbers: Any, path: Path, **rest: Any) -> int:
    log = JsonLines(path, enabled=True)
    rest.setdefault("checkpoints", Notebook())
    return train(numbers, numbers, num_steps=3, samples_per_step=8, log=log, **rest)


def test_what_a_look_sees_joins_the_line_of_its_step(tmp_path: Path) -> None:
    numbers = Numbers()

    def look(step: int) -> Metrics:
        numbers.diary.append(f"look {step}")
        return {"held_out/p_harm": 0.25} if step == 1 else {}

    run(numbers, tmp_path / "metrics.jsonl", look=look)
    seen = [line.get("held_out/p_harm") for line in lines_of(tmp_path / "metrics.jsonl")]
    assert seen == [None, 0.25, None]
    assert numbers.diary[:3] == ["batch 0", "learn batch 0", "look 0"]


def test_one_line_a_step_with_samples_and_times(tmp_path: Path) -> None:
    run(Numbers(), tmp_path / "metrics.jsonl")
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["samples"]) for line in lines] == [(0, 8), (1, 16), (2, 24)]
    assert [line["reward/mean"] for line in lines] == [0.0, 1.0, 2.0]
    assert all(line["policy/loss"] == -1.0 for line in lines)
    assert all(0 <= line["time/learner_s"] <= line["time/step_s"] for line in lines)


def test_an_attacker_who_has_enough_stops_before_the_next_batch(tmp_path: Path) -> None:
    numbers = Numbers()
    notebook = Notebook(diary=numbers.diary)
    steps = run(
        numbers,
        tmp_path / "metrics.jsonl",
        is_done=lambda: "learn batch 1" in numbers.diary,
        checkpoints=notebook,
    )
    assert steps == 2
    # the steps that were done are saved, so that a resumed run does not do them again
    assert numbers.diary[-1] == "save 2"
    assert "batch 2" not in numbers.diary
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [0, 1]


def test_a_resumed_training_that_has_enough_does_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run(Numbers(), path)
    numbers = Numbers()
    notebook = Notebook(next_step=2, diary=numbers.diary)
    assert run(numbers, path, is_done=lambda: True, checkpoints=notebook) == 2
    assert numbers.diary == []
    assert [line["step"] for line in lines_of(path)] == [0, 1]


def test_the_steps_of_the_whole_training_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert run(Numbers(), path) == 3
    assert run(Numbers(), path, checkpoints=Notebook(next_step=2)) == 3
    assert run(Numbers(), path, checkpoints=Notebook(next_step=3)) == 3


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


def test_an_interrupted_training_goes_on_at_its_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run(Numbers(), path)
    numbers = Numbers()
    run(numbers, path, checkpoints=Notebook(next_step=2))
    assert numbers.diary == ["batch 2", "learn batch 2"]
    assert [line["step"] for line in lines_of(path)] == [0, 1, 2]


def test_lines_after_the_checkpoint_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run(Numbers(), path)
    with pytest.raises(TrainingFailed):
        run(Numbers(breaks_at=1), path, checkpoints=Notebook(next_step=1))
    assert [line["step"] for line in lines_of(path)] == [0]


def test_a_training_is_saved_between_steps_and_at_its_end(tmp_path: Path) -> None:
    numbers = Numbers()
    run(numbers, tmp_path / "m.jsonl", checkpoints=Notebook(diary=numbers.diary))
    assert [entry for entry in numbers.diary if "batch" not in entry] == [
        *("asked", "asked", "save 2 aside", "save 3")
    ]
    assert numbers.diary.index("save 2 aside") < numbers.diary.index("batch 2")


def test_the_lines_of_the_steps_are_on_disk_before_what_goes_on_from_them(tmp_path: Path) -> None:
    numbers: Any = Numbers()

    class Log(JsonLines):
        def sync(self) -> None:
            numbers.diary.append(f"{self.num_lines} lines on disk")

    log = Log(tmp_path / "m.jsonl", enabled=True)
    notebook = Notebook(diary=numbers.diary)
    train(numbers, numbers, num_steps=3, samples_per_step=8, log=log, checkpoints=notebook)
    for num_steps, save in ((2, "save 2 aside"), (3, "save 3")):
        saved = numbers.diary.index(save)
        assert numbers.diary[saved - 1] == f"{num_steps} lines on disk"


def test_a_finished_training_is_not_saved_again(tmp_path: Path) -> None:
    notebook = Notebook(next_step=3)
    run(Numbers(), tmp_path / "m.jsonl", checkpoints=notebook)
    assert notebook.diary == []
