"""Every offline defence on a device that is not the CPU, to the values of the CPU."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from fakes import learner_of, tiny_engine, tiny_policy, token_batch
from pretended import CPU, pretended, stand_in
from torch import Tensor

from rpa_ray.defences import OFFLINE_DEFENCES
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import as_outputs
from rpa_ray.plugin.offline_defence import SampledOfflineDefence
from rpa_ray.types import Metrics, ModelOutputs, PairBatch, on_device

NUM_STEPS = 2
ADVERSARIES: dict[str, Any] = {
    "num_tasks": 2,
    "inner_steps": 2,
    "look_every": 1,
    "inner_learning_rates": [1e-4],
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("circuit_breakers", {}),
    ("circuit_breakers", {"variant": "original", "strength": 0.1}),
    ("grad_penalty", {"gamma": 0.1, "relative_step": 1e-2}),
    ("repnoise", {"beta": 0.5}),
    ("repnoise", {"mask": "positionwise_diff"}),
    ("rmu", {}),
    ("rmu", {"variant": "original", "retain_weight": 2.0}),
    ("tar", ADVERSARIES),
    ("tar", ADVERSARIES | {"tamper_loss": "max_entropy"}),
    ("tar", ADVERSARIES | {"tamper_loss": "repnoise"}),
    ("vaccine_offline", {}),
]
REFUSALS = token_batch([[1, *range(12, 12 + n), 2] for n in (2, 6, 1, 3)], width=8)
UNSAFE = token_batch([[1, *range(3, 3 + n), 2] for n in (4, 1, 6, 2)], width=8)
HARMLESS = token_batch([[1, *range(22 - n, 22)] for n in (3, 1, 4, 2)], num_prompt_tokens=2)


def hardened(
    name: str, settings: dict[str, Any], place: torch.device
) -> tuple[dict[str, Tensor], list[Metrics]]:
    """Return the weights after some steps on the device, and what each step measured."""
    kind = OFFLINE_DEFENCES[name]
    config = kind.Config.model_validate({"name": name, "batch_size": 4} | settings)
    defence = kind(config)
    hooks, module = defence.hooks(), tiny_policy()
    hooks.attach(module, {})
    start = tiny_policy().to(place).eval().requires_grad_(False)
    hooks.attach_compared(start)
    # Nearly proportional to the gradient, so that rounding stays rounding.
    rate = OptimizerSettings(learning_rate=0.1, num_steps=8, eps=1.0, max_grad_norm=100.0)
    learner = learner_of(
        tiny_engine(module=module, micro_batch_size=3, optimizer=rate),
        defence.objective(),
        hooks,
        ranks=Ranks(rank=0, size=1, device=place),
        frozen=torch.no_grad()(partial(outputs, start, place)),
        contrast_batch=on_device(PairBatch(chosen=REFUSALS, rejected=UNSAFE), place),
        harmless_batch=on_device(HARMLESS, place),
    )
    metrics = [learner.step(on_device(REFUSALS, place)) for _ in range(NUM_STEPS)]
    return {n: p.detach().cpu() for n, p in learner.engine.module.named_parameters()}, metrics


def outputs(model: PolicyModel, place: torch.device, ids: Tensor, mask: Tensor) -> ModelOutputs:
    found: ModelOutputs = as_outputs(model(ids.to(place), mask.to(place)))
    return found


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_hardening_is_on_the_device_what_it_is_on_the_cpu(
    name: str, settings: dict[str, Any]
) -> None:
    found = []
    for is_pretended in (True, False):
        with pretended() if is_pretended else nullcontext(CPU) as place, stand_in(place):
            found.append(hardened(name, settings, place))
    (here, measured_here), (there, measured_there) = found
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
    for one, other in zip(measured_here, measured_there, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_every_defence_with_an_objective_of_its_own_is_a_case() -> None:
    # What is trained on sampled answers takes the steps of an attack, which has a test like this.
    own = {n for n, kind in OFFLINE_DEFENCES.items() if not issubclass(kind, SampledOfflineDefence)}
    assert {name for name, _ in CASES} == own
