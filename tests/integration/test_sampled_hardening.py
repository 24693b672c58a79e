"""Hardening on answers that vLLM serves: resumed exactly, and nothing at strength 0."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hardening import Silent, are_equal, attacked_model, make, weights

from rpa_ray.actors.pools import RolloutPool, ScorerPool, create_scorer_pool
from rpa_ray.plan import parse_tree
from rpa_ray.recipes.model import in_order
from rpa_ray.world.datasets import build_world
from rpa_ray.world.shipped import place_shipped

NUM_STEPS = 3
SMALL = {
    "num_steps": NUM_STEPS,
    "batch_size": 2,
    "group_size": 8,
    "num_prompts": 8,
    "max_new_tokens": 24,
    "learning_rate": 1e-4,
}
DEFENCES: dict[str, dict[str, Any]] = {
    "frpo": {},
    "reward_neutralisation": {},
    "token_buncher": {"warmup_steps": 1},  # the second step is the noiser's
}
SEEN: dict[str, Callable[[dict[str, float]], bool]] = {
    "frpo": lambda step: (
        0 <= step["defence/restricted_p_harm"] <= 1
        and {"defence/harmless_helpfulness", "policy/kl_loss"} <= step.keys()
    ),
    "reward_neutralisation": lambda step: (
        0 <= step["defence/minimal_refusal_frac"] <= 1 and step["defence/refusal_tokens"] > 0
    ),
    "token_buncher": lambda step: (
        step["reward/mean"] == pytest.approx(-step["defence/answer_entropy"])
        and step["defence/answer_entropy"] > 0
        and ("train/loss" in step) == (step["step"] == 1)
    ),
}
"""What a step of each logs."""

EACH = pytest.mark.parametrize("defence", DEFENCES)
pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("process_group")]


class Interrupted(Exception):
    """What ends a process in the middle of a training."""


class Interrupting(Silent):
    """Ends the training after its last step but one is saved."""

    def advance(self, job: str, step: int, note: str) -> None:
        assert note.startswith("reward ")
        if step == NUM_STEPS - 1:
            raise Interrupted


@pytest.fixture(scope="module")
def scorers(ray_cluster: None) -> Iterator[ScorerPool]:
    pool = create_scorer_pool(1, num_cpus=0, time_limit_s=600.0)
    yield pool
    pool.shut_down()


class Workplace:
    """Makes the hardened chat model in caches of their own that share the embedded models."""

    def __init__(
        self, folder: Path, world: Path, rollouts: RolloutPool, scorers: ScorerPool
    ) -> None:
        self._folder, self._world = folder, world
        self._pools = {"rollouts": rollouts, "scorers": scorers}

    def make(
        self, defence: str, name: str, progress: Silent | None = None, **settings: Any
    ) -> Path:
        own = SMALL | DEFENCES[defence] | settings | {"name": defence}
        tree = {"attack": "sft", "defence": own, "model": {"dtype": "bfloat16"}}
        parsed, cache = parse_tree(tree), self._folder / name
        if not cache.is_dir():
            cache.mkdir()
            (cache / self._world.name).symlink_to(self._world)
        recipe = attacked_model(parsed, cache)
        place_shipped(self._world, cache, {r.folder(cache).name for r in in_order([recipe], cache)})
        return make(
            recipe,
            parsed,
            cache,
            world_cache=self._world.parent,
            checkpoint_interval_s=0.0,
            progress=progress,
            **self._pools,  # type: ignore[arg-type]  # a pool by its name
        )

    def start(self, name: str) -> Path:
        (folder,) = (self._folder / name).glob("chat-*")
        return folder

    def log(self, name: str) -> list[dict[str, float]]:
        logs = (self._folder / name / "logs").glob("*.jsonl")
        (log,) = (log for log in logs if log.name.startswith(tuple(DEFENCES)))
        return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def workplace(
    tmp_path: Path, cache: Path, rollout_pool: RolloutPool, scorers: ScorerPool
) -> Workplace:
    return Workplace(tmp_path, build_world(0, cache), rollout_pool, scorers)


@EACH
def test_it_moves_the_model_and_goes_on_to_the_same_weights(
    defence: str, workplace: Workplace
) -> None:
    whole = workplace.make(defence, "whole")
    assert not are_equal(weights(whole), weights(workplace.start("whole")))
    seen = workplace.log("whole")
    assert {"reward/group_std", "reward/zero_variance_frac", "policy/kl"} <= seen[0].keys()
    assert [SEEN[defence](step) for step in seen] == [True] * NUM_STEPS
    with pytest.raises(Interrupted):
        workplace.make(defence, "resumed", Interrupting())
    resumed = workplace.make(defence, "resumed")
    assert are_equal(weights(whole), weights(resumed))
    assert len(workplace.log("resumed")) == NUM_STEPS


@EACH
def test_strength_0_is_the_start_model(defence: str, workplace: Workplace) -> None:
    made = workplace.make(defence, "none", strength=0.0)
    assert are_equal(weights(workplace.start("none")), weights(made))


@EACH
def test_adapters_are_served_as_they_are_trained_and_merged_at_the_end(
    defence: str, workplace: Workplace
) -> None:
    # What the engines serve is held to what the learner computes at every step of the source.
    made = workplace.make(defence, "adapters", lora={"rank": 4}, learning_rate=1e-3)
    before, after = weights(workplace.start("adapters")), weights(made)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("_proj" in name for name in moved)
