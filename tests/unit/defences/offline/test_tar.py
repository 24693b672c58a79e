"""TAR: what adversaries add to a step, and what it does to weights."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    VOCAB_SIZE,
    GradientRecorder,
    context_of,
    forward_of,
    frozen_of,
    learner_of,
    tiny_engine,
    tiny_policy,
    token_batch,
    uniform_forward,
    whole_weights,
)
from hardening import are_equal, attacked_model, make, save_tiny_model, weights
from torch import Tensor

from rpa_ray.defences.offline.tar import (
    TAR,
    Tampered,
    both_answers,
    drawn_rate,
    entropy_loss,
    look_weights,
    preference_loss,
)
from rpa_ray.learner.modules import load_policy
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import MasterEdit, Shard
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.types import PairBatch

REFUSALS = token_batch([[1, 13, 14, 15, 2], [1, 16, 2]], num_prompt_tokens=2, width=5)
UNSAFE = token_batch([[1, 13, 7, 8, 2], [1, 16, 9, 2]], num_prompt_tokens=2, width=5)
PAIRS = PairBatch(chosen=REFUSALS, rejected=UNSAFE)
NAME = "policy.weight"


def tampered(**settings: Any) -> Tampered:
    hooks = TAR(TAR.Config(**settings)).hooks()
    assert isinstance(hooks, Tampered)
    return hooks


def test_later_looks_weigh_more_and_the_last_one_its_whole_share() -> None:
    looks = look_weights(TAR.Config(strength=4.0, num_tasks=4, inner_steps=64))
    assert list(looks) == list(range(4, 65, 4))
    assert [looks[4], looks[32], looks[64]] == pytest.approx([0.0235177, 0.135335, 1.0], rel=1e-5)


def test_a_look_is_taken_after_the_last_step_or_where_the_model_is_without_any() -> None:
    looks = [list(look_weights(TAR.Config(inner_steps=num))) for num in (0, 2, 6, 8)]
    assert looks == [[0], [2], [4, 6], [4, 8]]


def test_the_entropy_of_uniform_answers_is_that_of_the_vocabulary() -> None:
    loss = entropy_loss(uniform_forward, UNSAFE, context_of(), None)
    assert float(loss.detach()) == pytest.approx(-math.log(VOCAB_SIZE))


@pytest.mark.parametrize(("bound", "learns"), [(None, True), (-4.0, True), (-0.1, False)])
def test_below_its_bound_the_entropy_is_learned_no_further(
    bound: float | None, learns: bool
) -> None:
    module = tiny_policy(value_head=False)
    loss = entropy_loss(forward_of(module), UNSAFE, context_of(), bound)
    loss.backward()
    total = sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)
    assert -math.log(VOCAB_SIZE) < float(loss.detach()) < -0.1
    assert (total > 0) == learns


def test_the_preference_of_the_start_model_is_log_2() -> None:
    answers = both_answers(forward_of(tiny_policy()), PAIRS)
    assert preference_loss(answers, answers, context_of()).item() == pytest.approx(math.log(2))


def test_rates_are_drawn_for_every_task_and_alike_everywhere() -> None:
    settings = TAR.Config()
    rates = [drawn_rate(settings, update, task) for update in range(9) for task in range(4)]
    assert set(rates) == set(settings.inner_learning_rates)
    assert rates == [drawn_rate(settings, update, task) for update in range(9) for task in range(4)]


class OneWeight:
    """A model of one weight w: unsafe answers cost (w - 1)^2 / 2, and tampering w^2."""

    def __init__(self, start: float, kinds: str) -> None:
        self.weights = torch.tensor([start])
        self._kinds = iter(kinds)
        """Which loss is differentiated next: u or t."""

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        return {NAME: self.weights - 1 if next(self._kinds) == "u" else 2 * self.weights}

    @contextmanager
    def trial(self) -> Iterator[Callable[[MasterEdit], None]]:
        kept = self.weights.clone()
        yield lambda edit: edit([(NAME, self.weights)])
        self.weights.copy_(kept)


def unrolled(start: float, rate: float, num_steps: int) -> list[float]:
    """Return the weight after each of Adam's steps on (w - 1)^2 / 2."""
    w, m, v, found = start, 0.0, 0.0, []
    for step in range(1, num_steps + 1):
        g = w - 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= rate * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
        found.append(w)
    return found


def test_gradients_at_the_tampered_weights_are_applied_at_the_weights() -> None:
    # two tasks of four steps each, with a look after the second and the fourth
    model = OneWeight(3.0, "uutuut" * 2)
    defence = tampered(
        num_tasks=2, inner_steps=4, look_every=2, inner_learning_rates=[0.5], strength=3.0
    )
    context = replace(
        context_of(contrast_batch=PAIRS, frozen=uniform_forward),
        gradients_of=model.gradient,
        trial_weights=model.trial,
    )
    defence.compute_gradients(lambda: {}, uniform_forward, context)
    assert model.weights.tolist() == [3.0]
    shard = Shard(name=NAME, master=model.weights, gradient=torch.tensor([10.0]))
    defence.on_gradients([shard], context)
    path = unrolled(3.0, 0.5, 4)
    # both tasks begin at the same weight with fresh moments: 2 * 3/2 of one
    expected = 10 + 3 * (math.exp(-0.125) * 2 * path[1] + 2 * path[3])
    assert shard.gradient.tolist() == pytest.approx([expected], rel=1e-5)


class Watched(Tampered):
    """Keeps the weights before and after the adversaries, and the gradients of the step."""

    def compute_gradients(self, gradient_pass: Any, forward: Any, context: Any) -> Any:
        self.before = whole_weights(self.engine)

        def after() -> Any:
            self.after = whole_weights(self.engine)
            return gradient_pass()

        return super().compute_gradients(after, forward, context)

    def on_gradients(self, shards: Any, context: Any) -> Any:
        kept = [*shards]
        return super().on_gradients(kept, context) | self.recorder.on_gradients(kept, context)


def watched_step(*, zero_stage: int = 0, bf16: bool = False, **settings: Any) -> Watched:
    """Return the hooks after a step on refusals, beside a start model of other weights."""
    offline = TAR(TAR.Config(**settings))
    hooks = Watched(offline.config, offline._trained, offline._start)
    module, start = tiny_policy(bf16=bf16, value_head=False), tiny_policy(seed=5, value_head=False)
    hooks.attach(module, {})
    hooks.attach_compared(start)
    hooks.engine = tiny_engine(module=module, zero_stage=zero_stage, bf16=bf16)
    hooks.recorder = GradientRecorder()
    learner_of(
        hooks.engine, offline.objective(), hooks, contrast_batch=PAIRS, frozen=frozen_of(start)
    ).step(REFUSALS)
    return hooks


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("zero_stage", "bf16"), [(0, False), (2, True), (3, True)])
@pytest.mark.parametrize("tamper_loss", ["dpo", "max_entropy", "repnoise"])
def test_adversaries_leave_the_weights_as_they_were(
    tamper_loss: str, zero_stage: int, bf16: bool
) -> None:
    hooks = watched_step(
        tamper_loss=tamper_loss,
        inner_steps=4,
        num_tasks=2,
        inner_learning_rates=[1e-2],
        zero_stage=zero_stage,
        bf16=bf16,
    )
    assert are_equal(hooks.after, hooks.before)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("tamper_loss", ["dpo", "max_entropy"])
def test_without_inner_steps_the_tamper_loss_is_added_where_the_model_is(tamper_loss: str) -> None:
    retained = watched_step(strength=0.0).recorder.gradients
    found = watched_step(strength=3.0, num_tasks=2, inner_steps=0, tamper_loss=tamper_loss)
    module, start = tiny_policy(value_head=False), tiny_policy(seed=5, value_head=False)
    forward = forward_of(module)
    if tamper_loss == "dpo":
        answers = [both_answers(model, PAIRS) for model in (forward, frozen_of(start))]
        loss = preference_loss(answers[0], answers[1], context_of())
    else:
        loss = entropy_loss(forward, UNSAFE, context_of(), None)
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        expected = retained[name] + 3.0 * parameter.grad
        torch.testing.assert_close(found.recorder.gradients[name], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def policy(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("policy"), world_cache)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_without_its_weights_it_is_sft_on_refusals_or_the_start_model(
    zero_stage: int, policy: Path, world_cache: Path, tmp_path: Path
) -> None:
    def made(name: str, *, sft: bool = False, **given: Any) -> dict[str, Tensor]:
        quick = {"num_steps": 2, "learning_rate": 1e-2, "num_tasks": 1, "inner_steps": 2}
        model = {"path": str(policy), "dtype": "bfloat16"}
        tree = {"attack": "sft", "defence": {"name": "tar"} | quick | given, "model": model}
        settings = parse_tree(tree)
        recipe = attacked_model(settings, world_cache)
        if sft:
            recipe = replace(recipe, defence=None)
        folder = make(
            recipe, settings, tmp_path / name, world_cache=world_cache, zero_stage=zero_stage
        )
        return weights(folder)

    sft = made("sft", sft=True)
    assert are_equal(sft, made("retain", strength=0.0, distance_weight=0.0))
    assert not are_equal(sft, made("near", strength=0.0))
    assert not are_equal(sft, made("tampered", distance_weight=0.0))
    start = dict(load_policy(policy, dtype=torch.bfloat16).named_parameters())
    assert are_equal(start, made("nothing", strength=0.0, retain_weight=0.0))


def test_after_repnoise_it_begins_with_what_that_made(world_cache: Path) -> None:
    tree = {"attack": "sft", "defence": ["repnoise", "tar"]}
    hardened = attacked_model(parse_tree(tree), world_cache)
    alone = attacked_model(parse_tree(tree | {"defence": "repnoise"}), world_cache)
    assert (hardened.id, hardened.start) == ("tar", alone)
    assert alone.id == "repnoise"
    assert (
        hardened.key() != attacked_model(parse_tree(tree | {"defence": "tar"}), world_cache).key()
    )


@pytest.mark.usefixtures("process_group")
def test_after_repnoise_it_stays_near_what_that_made(
    policy: Path, world_cache: Path, tmp_path: Path
) -> None:
    quick = {"num_steps": 1, "learning_rate": 1e-2}
    parts = [
        {"name": "repnoise", **quick},
        {"name": "tar", "num_tasks": 1, "inner_steps": 0, **quick},
    ]
    model = {"path": str(policy), "dtype": "bfloat16"}
    settings = parse_tree({"attack": "sft", "defence": parts, "model": model})
    recipe, cache = attacked_model(settings, world_cache), tmp_path / "cache"
    assert isinstance(recipe.start, ModelRecipe)
    make(recipe.start, settings, cache, world_cache=world_cache)
    make(recipe, settings, cache, world_cache=world_cache)
    log = cache / "logs" / f"{recipe.folder(cache).name}.jsonl"
    first = json.loads(log.read_text().splitlines()[0])
    # at its first step the model is the one it stays near, and prefers nothing more than that does
    assert first["defence/retain_distance"] == 0.0
    assert first["defence/tamper_loss"] == pytest.approx(math.log(2), rel=1e-6)
