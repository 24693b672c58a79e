"""What an answer of the engine becomes on a learner rank."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_folders import save_turn_ending_model
from transformers import AutoTokenizer

from rpa_ray.actors.rollout import Generated, Sampling
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.learner.invariants import BrokenInvariant
from rpa_ray.types import Completion, Prompt

EOS, RIVER, WATER, END = 2, 9, 10, 13


class Workers:
    """Engines that give the same answer to every prompt."""

    def __init__(self, answer: Generated) -> None:
        self.answer = answer
        self.asked: list[Sampling] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generated]:
        self.asked.append(sampling)
        return [self.answer for _ in prompts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_turn_ending_model(tmp_path)


def completed(folder: Path, answer: Generated) -> tuple[Completion, Sampling]:
    """Return what becomes of an answer, and how it was asked for."""
    workers = Workers(answer)
    assembly: Any = SimpleNamespace(
        workers=workers,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        engine=SimpleNamespace(num_updates=7),
        ends=(END, EOS),
    )
    prompt = Prompt(id="a", text="what", token_ids=[6])
    (found,) = Assembly.complete(assembly, [prompt], seed=0, max_new_tokens=3, greedy=True)
    return found, workers.asked[0]


def test_an_answer_ends_at_any_of_the_ids_which_its_text_does_not_hold(folder: Path) -> None:
    answer = Generated(token_ids=[WATER, RIVER, END], logprobs=[-1.0, -2.0, -3.0], finished=True)
    found, asked = completed(folder, answer)
    assert asked.eos_token_id == (END, EOS)
    assert found.finished
    assert found.token_ids == [WATER, RIVER, END]
    assert found.logprobs == [-1.0, -2.0, -3.0]
    assert found.text == "water river"
    assert found.policy_version == 7


def test_an_answer_that_runs_on_behind_its_end_ends_the_run(folder: Path) -> None:
    answer = Generated(token_ids=[WATER, END, RIVER], logprobs=[-1.0] * 3, finished=False)
    with pytest.raises(BrokenInvariant, match=r"^invariant answer_end: "):
        completed(folder, answer)


def test_an_answer_that_was_cut_keeps_its_last_word(folder: Path) -> None:
    answer = Generated(token_ids=[WATER, RIVER, RIVER], logprobs=[-1.0] * 3, finished=False)
    found, _ = completed(folder, answer)
    assert not found.finished
    assert found.text == "water river river"
