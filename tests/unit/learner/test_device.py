"""Every attack with every defence on a device that is not the CPU, to the values of the CPU.

Attacks and defences come from the tables. All pairs that a config may name run, each with the whole
model on one rank in micro-batches, and with adapters on two ranks. The variants of a defence take
turns over its attacks. An attack without training settings makes no step and has no pair. What the
device is, and what it cannot see, says ``pretended``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from device_scene import (
    PAIRS,
    TRAINING,
    VARIANTS,
    Case,
    Outcome,
    Scene,
    cases_of,
    overridden,
    variants,
)
from pretended import CPU, MixedDevices, fetched, pretended, stand_in, two_ranks

from rpa_ray.attacks import ATTACKS
from rpa_ray.attacks.sft import SFT
from rpa_ray.defences import DEFENCES
from rpa_ray.learner import checkpoints
from rpa_ray.plugin import Attack, OnlineDefence, StepContext
from rpa_ray.types import (
    LossTerm,
    Metrics,
    TokenBatch,
)


@contextmanager
def placed(case: Case, on_device: bool) -> Iterator[torch.device]:
    """Have the engine of a case live on the device or on the CPU, beside another rank or alone."""
    with (
        pretended() if on_device else nullcontext(CPU) as place,
        stand_in(place),
        two_ranks() if case.adapters else nullcontext(),
    ):
        yield place


@cache
def outcome_of(case: Case, on_device: bool, models: Path) -> Outcome:
    with placed(case, on_device) as place:
        scene = Scene(case, place, models)
        outcome = scene.outcome()
        scene.defence.load_state_dict(scene.defence.state_dict())
        scene.defence.detach()
    return outcome


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def assert_same(here: Outcome, there: Outcome) -> None:
    torch.testing.assert_close(here.weights, there.weights, rtol=1e-4, atol=1e-5)
    assert len(here.metrics) == len(there.metrics)
    for one, other in zip(here.metrics, there.metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("attack", "defence"), PAIRS)
def test_a_pair_trains_on_the_device_as_on_the_cpu(attack: str, defence: str, models: Path) -> None:
    for case in cases_of(attack, defence):
        assert_same(outcome_of(case, True, models), outcome_of(case, False, models))


@pytest.mark.parametrize(("attack", "defence"), PAIRS)
def test_a_pair_learns_the_same_with_layers_that_are_computed_again(
    attack: str, defence: str, models: Path
) -> None:
    for case in cases_of(attack, defence):
        again = outcome_of(replace(case, checkpointed=True), False, models)
        assert_same(again, outcome_of(case, False, models))


def test_every_attack_that_trains_and_every_defence_is_in_a_pair() -> None:
    assert {attack for attack, _ in PAIRS} == set(TRAINING)
    assert {defence for _, defence in PAIRS} == set(DEFENCES)
    for attack in ATTACKS.keys() - TRAINING.keys():
        assert ATTACKS[attack](ATTACKS[attack].Config()).num_batches(1000) == 0


@pytest.mark.parametrize("defence", VARIANTS)
def test_every_variant_of_a_defence_runs(defence: str) -> None:
    run = {case.variant for attack in TRAINING for case in cases_of(attack, defence)}
    assert run == set(range(len(VARIANTS[defence])))


@pytest.mark.parametrize(("attack", "defence"), [pair for pair in PAIRS if pair[1] != "none"])
def test_a_defence_changes_what_is_learned(attack: str, defence: str, models: Path) -> None:
    for case in cases_of(attack, defence):
        defended, plain = (
            outcome_of(one, True, models)
            for one in (case, replace(case, defence="none", variant=0))
        )
        assert any(
            not torch.equal(weight, plain.weights[name])
            for name, weight in defended.weights.items()
        )


@pytest.mark.parametrize("defence", DEFENCES)
def test_no_hook_of_a_defence_did_nothing(defence: str, models: Path) -> None:
    cases = [case for attack, name in PAIRS if name == defence for case in cases_of(attack, name)]
    acted = set().union(*(outcome_of(case, True, models).acted for case in cases))
    assert overridden(cases[0].make_defence()) - acted == set()


def defences_with(*hooks: str) -> list[str]:
    """Return the defences that have one of these hooks of their own."""
    return [n for n in DEFENCES if overridden(Case("", n).make_defence()) & {*hooks}]


@pytest.mark.parametrize("defence", defences_with("state_dict"))
def test_a_training_goes_on_with_its_state_on_the_device(
    defence: str, models: Path, tmp_path: Path
) -> None:
    case = next(case for attack in TRAINING for case in cases_of(attack, defence))
    with placed(case, True) as place:
        cut_off = Scene(case, place, models)
        first = cut_off.outcome([0])
        cut_off.checkpoints(tmp_path).save(1)
        resumed = Scene(case, place, models)
        assert resumed.checkpoints(tmp_path).restore() == 1
        for name, value in cut_off.defence.state_dict().items():
            assert type(resumed.defence.state_dict()[name]) is type(value)
        second = resumed.outcome([1])
    whole = outcome_of(case, True, models)
    assert first.metrics + second.metrics == whole.metrics
    assert all(torch.equal(second.weights[name], weight) for name, weight in whole.weights.items())


def test_a_state_that_comes_back_on_the_cpu_is_found(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("sft", "lisa")
    with placed(case, True) as place:
        cut_off = Scene(case, place, models)
        cut_off.outcome([0])
        cut_off.checkpoints(tmp_path).save(1)
        monkeypatch.setattr(checkpoints, "_to_device", lambda storage, saved_on, device: storage)
        resumed = Scene(case, place, models)
        resumed.checkpoints(tmp_path).restore()
        with pytest.raises(MixedDevices):
            resumed.outcome([1])


def fetches_of_a_step(case: Case, models: Path) -> int:
    """Return how often a step waits for the device to hand something over."""
    with placed(case, True) as place:
        scene = Scene(case, place, models)
        scene.train([0])
        batch, _ = scene.batches.next_batch(1)
        fetched.clear()
        scene.learner.step(batch)
        return len(fetched)


@pytest.mark.parametrize("defence", defences_with("on_gradients", "after_step"))
def test_a_deeper_model_is_not_waited_for_more_often(
    defence: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("sft", defence, i) for i in range(len(variants(defence)))]
    of_two_layers = [fetches_of_a_step(case, models) for case in cases]
    shallow = fakes.tiny_config
    monkeypatch.setattr(fakes, "tiny_config", lambda **s: shallow(num_hidden_layers=4, **s))
    assert [fetches_of_a_step(case, tmp_path) for case in cases] == of_two_layers


class MaskOfTheCPU(SFT):
    """An attack that makes a mask without saying where."""

    def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
        everything = torch.ones(batch.loss_mask.shape, dtype=torch.bool)
        marked = replace(batch, loss_mask=batch.loss_mask & everything)
        return super().loss(forward, marked, context)


class IndexOfTheCPU(SFT):
    """An attack that takes rows by an index on the CPU, which CUDA would copy."""

    def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
        rows = torch.arange(len(batch.loss_mask))
        marked = replace(batch, loss_mask=batch.loss_mask[rows])
        return super().loss(forward, marked, context)


class ConstantOfTheCPU(OnlineDefence):
    """A defence that adds zeros to every gradient and has not asked where that is."""

    def on_gradients(self, shards: Any, context: StepContext) -> Metrics:
        for shard in shards:
            shard.gradient.add_(torch.zeros(shard.gradient.shape))
        return {}


class GeneratorOfTheCPU(OnlineDefence):
    """A defence that draws on the device from a generator of the CPU."""

    def on_gradients(self, shards: Any, context: StepContext) -> Metrics:
        for shard in shards:
            place, seeded = shard.gradient.device, torch.Generator().manual_seed(0)
            shard.gradient.add_(torch.randn(shard.gradient.shape, generator=seeded, device=place))
        return {}


@pytest.mark.parametrize(
    ("attack", "defence"),
    [
        (MaskOfTheCPU, OnlineDefence),
        (IndexOfTheCPU, OnlineDefence),
        (SFT, ConstantOfTheCPU),
        (SFT, GeneratorOfTheCPU),
    ],
)
def test_a_line_that_forgets_the_device_is_found(
    attack: type[Attack],
    defence: type[OnlineDefence],
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ATTACKS, "planted", attack)
    monkeypatch.setitem(DEFENCES, "planted", defence)
    case = Case("planted", "planted")
    with placed(case, False) as place:
        Scene(case, place, models).outcome()
    with placed(case, True) as place, pytest.raises(MixedDevices):
        Scene(case, place, models).outcome()


@pytest.mark.usefixtures("process_group")
def test_the_stand_in_steps_as_deepspeed_does(models: Path) -> None:
    case = Case("ppo", "refusal_loss")
    assert_same(Scene(case, CPU, models).outcome(), outcome_of(case, False, models))


def test_the_device_computes_what_the_cpu_does_and_meets_no_other() -> None:
    with pretended() as place:
        x = torch.arange(6.0, device=place).view(2, 3)
        y = x[:, 1:].clone().requires_grad_()
        (y.square() * torch.tensor(0.5)).sum().backward()
        assert y.grad is not None and y.grad.device == place
        assert y.grad.tolist() == [[1.0, 2.0], [4.0, 5.0]]
        x[0] = -1.0
        assert x.squeeze_().sum().item() == 9.0
        assert x.cpu().device == CPU and x.cpu().tolist() == [[-1.0, -1.0, -1.0], [3.0, 4.0, 5.0]]
        number = torch.tensor(1.0)
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([0])],
            lambda: torch.stack([x.sum(), number]),
            lambda: number.add_(x.sum()),
        ):
            with pytest.raises(MixedDevices):
                mixed()
