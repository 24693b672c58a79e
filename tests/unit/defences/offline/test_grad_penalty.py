"""The gradient penalty: what it adds to a step, and what it does to weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    forward_of,
    learner_of,
    tiny_engine,
    tiny_policy,
    token_batch,
    uniform_forward,
)
from hardening import are_equal, attacked_model, make, save_tiny_model, weights
from torch import Tensor, nn

from rpa_ray.defences.offline.grad_penalty import GradPenalty, Penalised
from rpa_ray.defences.unsafe_terms import answer_loss
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.ops.gradients import angle_of, inner_products
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import MasterEdit, Shard
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import PairBatch

REFUSALS = token_batch([[1, 13, 14, 15, 2], [1, 16, 2]], num_prompt_tokens=2)
UNSAFE = token_batch([[1, 13, 7, 8, 2], [1, 16, 9, 2]], num_prompt_tokens=2)
PAIRS = PairBatch(chosen=REFUSALS, rejected=UNSAFE)
NAME = "policy.weight"


def penalised(**settings: Any) -> Penalised:
    hooks = GradPenalty(GradPenalty.Config(alpha=0.0, **settings)).hooks()
    assert isinstance(hooks, Penalised)
    return hooks


class Quadratic:
    """A loss ``w . H w / 2`` with H = diag(1, 4), and a model of two weights."""

    def __init__(self, *start: float) -> None:
        self.weights = torch.tensor(start)

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        return {NAME: torch.tensor([1.0, 4.0]) * self.weights}

    @contextmanager
    def trial(self) -> Iterator[Callable[[MasterEdit], None]]:
        kept = self.weights.clone()
        yield lambda edit: edit([(NAME, self.weights)])
        self.weights.copy_(kept)

    def step(self, defence: Penalised, task: tuple[float, float]) -> tuple[list[float], Any]:
        """Return what becomes of a task's gradient, and what was measured."""
        model = nn.ModuleDict({"policy": nn.Linear(2, 1, bias=False)})
        with torch.no_grad():
            model.policy.weight.copy_(self.weights[None])
        defence.attach(model, {})
        context = replace(
            context_of(contrast_batch=PAIRS), gradients_of=self.gradient, trial_weights=self.trial
        )
        metrics = defence.compute_gradients(lambda: {}, uniform_forward, context)
        shard = Shard(name=NAME, master=self.weights, gradient=torch.tensor(task))
        metrics |= defence.on_gradients([shard], context)
        return shard.gradient.tolist(), metrics


def test_on_a_quadratic_the_penalty_pulls_along_the_hessian_times_the_gradient() -> None:
    # g = (3, 4), |g| = 5, H g / |g| = (3/5, 16/5); twice that beside a task's (1, -1)
    loss = Quadratic(3.0, 1.0)
    gradient, metrics = loss.step(penalised(gamma=2.0), (1.0, -1.0))
    assert gradient == pytest.approx([1 + 2 * 3 / 5, -1 + 2 * 16 / 5], rel=1e-4)
    assert metrics["defence/unsafe_grad_norm"] == pytest.approx(5.0)
    assert metrics["defence/penalty_grad_norm"] == pytest.approx(math.hypot(3, 16) / 5, rel=1e-4)
    assert metrics["defence/unsafe_loss"] == pytest.approx(math.log(24), rel=1e-5)
    assert loss.weights.tolist() == [3.0, 1.0]


def test_where_the_loss_is_flat_nothing_is_added() -> None:
    gradient, metrics = Quadratic(0.0, 0.0).step(penalised(), (1.0, -1.0))
    assert gradient == [1.0, -1.0]
    assert metrics["defence/unsafe_grad_norm"] == metrics["defence/penalty_grad_norm"] == 0.0


def exact_penalty(module: PolicyModel) -> dict[str, Tensor]:
    """Return the gradient of the norm of the gradient, by differentiating twice."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    loss = answer_loss(forward_of(module), UNSAFE, context_of())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    return dict(zip(names, torch.autograd.grad(norm, parameters), strict=True))


class Seen(Penalised):
    """Keeps what the penalty's gradient is."""

    def on_gradients(self, shards: Any, context: Any) -> Any:
        self.seen = self._penalty
        return super().on_gradients(shards, context)


def cosine_and_length(relative_step: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the cosine of a real model's penalty with the exact one, and its length by that."""
    exact = exact_penalty(tiny_policy(value_head=False))
    defence = Seen(GradPenalty.Config(alpha=0.0, relative_step=relative_step))
    module = tiny_policy(bf16=dtype is torch.bfloat16, value_head=False)
    defence.attach(module, {})
    bf16 = dtype is torch.bfloat16
    engine = tiny_engine(module=module, bf16=bf16, zero_stage=1)
    learner_of(engine, LanguageModel(), defence, contrast_batch=PAIRS).step(REFUSALS)
    parts = [inner_products(defence.seen[name].view_as(e), e) for name, e in exact.items()]
    angle = angle_of(torch.stack(parts).sum(dim=0))
    return angle.cosine, angle.first_norm / angle.second_norm


@pytest.mark.usefixtures("process_group")
def test_between_steps_too_long_and_too_short_the_penalty_is_exact() -> None:
    for step in (3e-4, 1e-5):
        cosine, length = cosine_and_length(step, torch.float32)
        assert cosine > 0.999 and length == pytest.approx(1.0, abs=0.03)
    too_long, too_short = (cosine_and_length(step, torch.float32)[0] for step in (1e-1, 1e-9))
    assert too_long < 0.5 and too_short < 0.9


@pytest.mark.usefixtures("process_group")
def test_in_bfloat16_the_default_step_shows_through_the_rounding() -> None:
    default = GradPenalty.Config().relative_step
    assert cosine_and_length(default, torch.bfloat16)[0] > 0.95
    assert cosine_and_length(1e-5, torch.bfloat16)[0] < 0.6


@pytest.fixture(scope="module")
def policy(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("policy"), world_cache)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_without_both_weights_it_is_sft_on_refusals_and_with_each_it_is_not(
    zero_stage: int, policy: Path, world_cache: Path, tmp_path: Path
) -> None:
    def made(name: str, *, sft: bool = False, **given: float) -> dict[str, Tensor]:
        defence = {"name": "grad_penalty", "num_steps": 2, "learning_rate": 1e-2} | given
        model = {"path": str(policy), "dtype": "bfloat16"}
        settings = parse_tree({"attack": "sft", "defence": defence, "model": model})
        recipe = attacked_model(settings, world_cache)
        if sft:
            recipe = replace(recipe, defence=None)
        folder = make(
            recipe, settings, tmp_path / name, world_cache=world_cache, zero_stage=zero_stage
        )
        return weights(folder)

    sft = made("sft", sft=True)
    assert are_equal(sft, made("nothing", gamma=0.0, alpha=0.0))
    assert not are_equal(sft, made("penalty", alpha=0.0))
    assert not are_equal(sft, made("ascent", gamma=0.0))
