"""An attack asks after each look, and nowhere else, whether it goes on."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rpa_ray.config import EvaluationSettings
from rpa_ray.jobs import looks as looks_module
from rpa_ray.jobs.looks import Looks

LOOK = {"held_out/n": 4.0, "held_out/harm": 0.5}


class Scene:
    """An attack of eight steps with four looks, after steps 1, 2, 5 and 8."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.asked, self.stops_at = folder / "metrics.jsonl", list[int](), 99
        settings = SimpleNamespace(evaluation=EvaluationSettings(num_looks=4))
        ranks = SimpleNamespace(is_main=True, broadcast=lambda value: value)
        process = SimpleNamespace(ranks=ranks, is_stopped=self.is_stopped)
        assembly: Any = SimpleNamespace(
            settings=settings,
            process=process,
            cell=SimpleNamespace(name="cell", folder=folder),
            num_steps=8,
            push=lambda: None,
        )
        for name in ("oracle_of", "text_scorers", "sampled_answers", "read_answers"):
            monkeypatch.setattr(looks_module, name, lambda *args, **kwargs: None)
        monkeypatch.setattr(looks_module, "restricted_prompts", lambda assembly: [])
        monkeypatch.setattr(looks_module, "look_of", lambda *args, **kwargs: dict(LOOK))
        self.looks = Looks(assembly)

    def is_stopped(self, job: str, looks: Sequence[Any]) -> bool:
        self.asked.append(len(looks))
        return len(looks) >= self.stops_at

    def train(self) -> int:
        """Take steps as the loop does; return how many."""
        step = 0
        while step < 8 and not self.looks.is_stopped():
            found = self.looks.look(step)
            with self.log.open("a") as file:
                file.write(json.dumps({"step": step, "samples": 8 * (step + 1), **found}) + "\n")
            step += 1
        return step


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_it_asks_before_the_first_step_and_after_each_look_but_the_last(scene: Scene) -> None:
    assert scene.train() == 8
    assert scene.asked == [0, 1, 2, 3]


def test_it_ends_at_the_look_at_which_it_is_stopped(scene: Scene) -> None:
    scene.stops_at = 2
    assert scene.train() == 2
    assert scene.looks.is_stopped()
    assert scene.asked == [0, 1, 2]


def test_one_that_goes_on_after_an_interruption_asks_about_its_earlier_looks(
    scene: Scene,
) -> None:
    scene.log.write_text(json.dumps({"step": 0, "samples": 8, **LOOK}) + "\n")
    scene.stops_at = 1
    assert scene.looks.is_stopped()
    assert scene.asked == [1]
