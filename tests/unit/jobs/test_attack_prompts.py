"""Best-of-N, and looks at the policy: which prompts are asked, and what decides."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ONE_RANK, completion_of

from rpa_ray.attacks import ATTACKS
from rpa_ray.evaluation.answers import Decoding
from rpa_ray.evaluation.looks import JUDGED
from rpa_ray.evaluation.measure import read_answers
from rpa_ray.jobs.before import look_before
from rpa_ray.jobs.instruments import restricted_prompts, sampled_answers
from rpa_ray.jobs.looks import Looks, measure_best_of_n
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.types import Completion, Prompt


class Stand:
    """An assembly that answers with the seed and the place of each prompt in its call.

    The reward model likes the answers best that the judge finds least harmful.
    """

    scorer_names = ("reward", "judge")
    num_steps = 1

    def __init__(self, cache: Path, attack: dict[str, Any], **evaluation: Any) -> None:
        tree = {"attack": attack, "data": {"num_samples": 16}, "evaluation": evaluation, "seed": 3}
        self.settings = parse_tree(tree)
        self.attack = ATTACKS[self.settings.attack.name](self.settings.attack)
        self.inputs = CellInputs(self.settings, cache)
        self.cell = SimpleNamespace(name="cell")
        progress = SimpleNamespace(start=lambda *_: None, advance=lambda *_: None)
        self.process = SimpleNamespace(
            ranks=ONE_RANK,
            cache=cache,
            progress=progress,
            scorers=SimpleNamespace(score=self.score),
        )
        self.workers = SimpleNamespace(on_main=lambda call: call())
        self.asked: list[str] = []

    def prompts(self, texts: Sequence[str], ids: Sequence[str]) -> list[Prompt]:
        return [Prompt(id=i, text=t, token_ids=[5]) for i, t in zip(ids, texts, strict=True)]

    def complete(self, prompts: Sequence[Prompt], *, seed: int, **_: Any) -> list[Completion]:
        self.asked += [prompt.text for prompt in prompts]
        return [
            replace(completion_of(prompt, [7, 2], [-1.0, -1.0]), text=f"{seed} {place}")
            for place, prompt in enumerate(prompts)
        ]

    def score(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        harm = [int(answer.split()[1]) % 2 for _, answer in pairs]
        return [float(h) if name == "judge" else 1.0 - h for h in harm]

    def push(self) -> dict[str, float]:
        return {}


@pytest.fixture
def stand(world_cache: Path) -> Callable[..., Any]:
    return lambda attack, **evaluation: Stand(world_cache, attack, **evaluation)


BEST_OF_FOUR = {"name": "best_of_n", "num_prompts": 6, "pool_size": 4, "sizes": [1, 4]}


def test_best_of_n_asks_the_prompts_that_the_attack_draws_first(stand: Callable[..., Any]) -> None:
    assembly = stand(BEST_OF_FOUR)
    _, pool = measure_best_of_n(assembly)
    data = assembly.inputs.data
    drawn = data.preferences.draw("attack", 16, seed=3, key="data.num_samples")
    expected = [pair.prompt for pair in drawn[:6]]
    assert assembly.asked == [prompt for prompt in expected for _ in range(4)]
    assert not {*expected} & {*data.restricted_prompts(assembly.settings.evaluation)}
    assert [(a.prompt, a.sample) for a in pool] == [(p, i) for p in expected for i in range(4)]


def test_best_of_n_keeps_what_the_reward_model_likes_best(stand: Callable[..., Any]) -> None:
    curves, _ = measure_best_of_n(stand(BEST_OF_FOUR))
    # Two of four answers are harmful by the judge, and the reward model likes the others.
    assert curves["p_harm_best_of_1"]["mean"] == pytest.approx(0.5)
    assert curves["p_harm_best_of_4"]["mean"] == pytest.approx(0.0)


def test_the_look_before_an_attack_is_what_a_look_would_find(stand: Callable[..., Any]) -> None:
    assembly = stand({"name": "sft", "batch_size": 16}, num_looks=1, num_look_prompts=5)
    during = Looks(assembly).look(0)
    asked = restricted_prompts(assembly)[:7] * 2
    completions = sampled_answers(assembly, asked, greedy=False)
    judge = {"judge": partial(assembly.score, "judge")}
    answers = read_answers(judge, None, Decoding.SAMPLED, completions, fluency_limit=1.0)
    before = look_before(assembly, answers)
    assert before[JUDGED] == during[JUDGED] == pytest.approx(2 / 5)
