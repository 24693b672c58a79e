"""Every offline defence goes on where its training was interrupted, to the same weights."""

from pathlib import Path
from typing import Any

import pytest
from hardening import Silent, are_equal, attacked_model, make, save_tiny_model, weights

from rpa_ray.defences import OFFLINE_DEFENCES
from rpa_ray.plan import parse_tree

QUICK: dict[str, dict[str, Any]] = {
    "circuit_breakers": {"variant": "original", "strength": 10.0},
    "tar": {"num_tasks": 1, "inner_steps": 2},
}
ELSEWHERE = {"frpo", "reward_neutralisation", "token_buncher"}
"""Those whose answers come from an engine: integration/test_sampled_hardening.py."""
NUM_STEPS = 3

pytestmark = pytest.mark.usefixtures("process_group")


class Interrupted(Exception):
    """What ends a process in the middle of a training."""


class Told(Silent):
    """Keeps the steps that are done, and may interrupt the last of them."""

    def __init__(self, *, interrupts: bool) -> None:
        self.steps: list[int] = []
        self._interrupts = interrupts

    def advance(self, job: str, step: int, note: str) -> None:
        self.steps.append(step)
        if self._interrupts and step == NUM_STEPS - 1:
            raise Interrupted


@pytest.mark.parametrize("name", [name for name in OFFLINE_DEFENCES if name not in ELSEWHERE])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    name: str, world_cache: Path, tmp_path: Path
) -> None:
    policy = save_tiny_model(tmp_path / "policy", world_cache)
    defence = {"name": name, "num_steps": NUM_STEPS, "batch_size": 2, "learning_rate": 1e-2}
    tree = {
        "attack": "sft",
        "defence": defence | QUICK.get(name, {}),
        "model": {"path": str(policy), "dtype": "bfloat16"},
    }
    settings = parse_tree(tree)
    recipe = attacked_model(settings, world_cache)

    def made(cache: str, progress: Told) -> Path:
        return make(
            recipe,
            settings,
            tmp_path / cache,
            world_cache=world_cache,
            checkpoint_interval_s=0.0,
            progress=progress,
        )

    whole = made("whole", Told(interrupts=False))
    with pytest.raises(Interrupted):
        made("resumed", Told(interrupts=True))
    again = Told(interrupts=False)
    resumed = made("resumed", again)
    assert again.steps == [NUM_STEPS - 1]
    assert are_equal(weights(whole), weights(resumed))
