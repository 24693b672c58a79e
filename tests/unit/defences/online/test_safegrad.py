from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    experience_of,
    forward_of,
    frozen_of,
    learner_of,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor, nn

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.defences.online.safegrad import SafeGrad, conflict
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.plugin import Need, OnlineDefence, Shard
from rpa_ray.types import Metrics

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
REFUSALS = token_batch([[1, 13, 14, 15, 2], [1, 16, 2]], num_prompt_tokens=2)
NAME = "policy.layers.0.weight"


def safegrad(**settings: Any) -> SafeGrad:
    return SafeGrad(SafeGrad.Config(**settings))


class Model(nn.Module):
    """Two blocks of two tensors, one tensor outside them, and a value head; two entries each."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Module()
        self.policy.layers = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
        self.policy.norm = nn.Parameter(torch.zeros(2))
        self.value_head = nn.Linear(2, 1)


def edited(
    task: dict[str, Sequence[float]],
    safety: dict[str, Sequence[float]],
    *,
    split: Callable[[Tensor], Tensor] = lambda whole: whole,
    sum_over_shards: Callable[[Tensor], Tensor] = lambda own: own,
    **settings: Any,
) -> tuple[dict[str, list[float]], Metrics]:
    """Return the gradients after one update, and what was measured."""
    defence = safegrad(**settings)
    defence.attach(Model(), {})
    context = replace(
        context_of(safe_batch=REFUSALS, frozen=frozen_of(tiny_policy())),
        gradients_of=lambda loss: {n: split(torch.tensor(g)) for n, g in safety.items()},
        sum_over_shards=sum_over_shards,
    )
    defence.compute_gradients(lambda: {}, forward_of(tiny_policy(seed=1)), context)
    shards = [
        Shard(name=n, master=torch.zeros(2), gradient=split(torch.tensor(g)).clone())
        for n, g in task.items()
    ]
    metrics = defence.on_gradients(shards, context)
    return {shard.name: shard.gradient.tolist() for shard in shards}, metrics


def test_the_part_against_safety_is_taken_out() -> None:
    task, safety = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0])
    coefficient = conflict(task @ safety, safety @ safety)
    assert (task - coefficient * safety).tolist() == [1.0, 0.0]


def test_the_safety_gradient_is_added_to_what_is_left() -> None:
    gradients, metrics = edited({NAME: [1.0, -1.0]}, {NAME: [0.0, 1.0]}, strength=0.25)
    assert gradients == {NAME: [1.0, 0.25]}
    assert metrics["defence/projected"] == 1.0


def test_what_is_left_is_orthogonal_to_the_safety_gradient() -> None:
    torch.manual_seed(0)
    task, safety = torch.randn(2, 50)
    task = task - 2.0 * safety
    left = task - conflict(task @ safety, safety @ safety) * safety
    assert float(task @ safety) < -10
    assert float(left @ safety) == pytest.approx(0.0, abs=1e-4)


def test_a_task_that_agrees_with_safety_is_not_projected() -> None:
    gradients, metrics = edited({NAME: [1.0, 0.5]}, {NAME: [0.0, 2.0]}, strength=0.5)
    assert gradients == {NAME: [1.0, 1.5]}
    assert metrics["defence/projected"] == 0.0


def test_a_vanishing_safety_gradient_changes_nothing() -> None:
    gradients, metrics = edited({NAME: [1.0, -1.0]}, {NAME: [0.0, 9e-9]}, strength=1e6)
    assert gradients == {NAME: [1.0, -1.0]}
    assert metrics["defence/projected"] == 0.0
    felt, _ = edited({NAME: [1.0, -1.0]}, {NAME: [0.0, 2e-8]})
    assert felt[NAME] == pytest.approx([1.0, 0.0], abs=1e-6)
    gradients, metrics = edited({NAME: [1.0, -1.0]}, {NAME: [0.0, 0.0]})
    assert gradients == {NAME: [1.0, -1.0]}
    assert metrics["defence/grad_cosine"] == 0.0


def test_norms_before_clipping_and_their_cosine_are_logged() -> None:
    _, metrics = edited({NAME: [3.0, -4.0]}, {NAME: [0.0, 2.0]})
    assert metrics["defence/task_grad_norm"] == pytest.approx(5.0)
    assert metrics["defence/safety_grad_norm"] == pytest.approx(2.0)
    assert metrics["defence/grad_cosine"] == pytest.approx(-0.8)


TASK = {
    "policy.norm": [1.0, 0.0],
    "policy.layers.0.weight": [0.0, -1.0],
    "policy.layers.0.bias": [2.0, 0.0],
    "policy.layers.1.weight": [0.0, 3.0],
}
SAFETY = {name: [0.0, 1.0] for name in TASK} | {"policy.layers.0.bias": [1.0, 0.0]}


def test_all_weights_are_one_vector_or_each_layer_is_its_own() -> None:
    # Together the dot is -1 + 2 + 3; of block 0 it is -1 + 2, so nothing is projected either way.
    for projection in ("global", "per_layer"):
        gradients, metrics = edited(TASK, SAFETY, projection=projection)
        assert metrics["defence/projected"] == 0.0
        assert gradients["policy.layers.0.weight"] == [0.0, 0.0]
    # Now block 0 has -4 + 2: of |safety|^2 = 2 it loses -1. Together the dot is still positive.
    task = TASK | {"policy.layers.0.weight": [0.0, -4.0]}
    gradients, metrics = edited(task, SAFETY, projection="global")
    assert metrics["defence/projected"] == 0.0
    gradients, metrics = edited(task, SAFETY, projection="per_layer", strength=0.5)
    # one of three: the norm, block 0 and block 1
    assert metrics["defence/projected"] == pytest.approx(1 / 3)
    assert gradients["policy.layers.0.weight"] == [0.0, -4.0 + 1.0 + 0.5]
    assert gradients["policy.layers.0.bias"] == [2.0 + 1.0 + 0.5, 0.0]
    assert gradients["policy.layers.1.weight"] == [0.0, 3.5]
    assert gradients["policy.norm"] == [1.0, 0.5]


@pytest.mark.parametrize("projection", ["global", "per_layer"])
def test_two_ranks_with_half_of_every_gradient_do_what_one_does(projection: str) -> None:
    whole, expected = edited({NAME: [1.0, -3.0]}, {NAME: [0.5, 1.0]}, projection=projection)
    sums: list[Tensor] = []

    def first(own: Tensor) -> Tensor:
        sums.append(own)
        return own

    for rank in (0, 1):  # what each rank contributes
        edited(
            {NAME: [1.0, -3.0]},
            {NAME: [0.5, 1.0]},
            split=lambda g, rank=rank: g[rank : rank + 1],
            sum_over_shards=first,
            projection=projection,
        )
    for rank in (0, 1):
        gradients, metrics = edited(
            {NAME: [1.0, -3.0]},
            {NAME: [0.5, 1.0]},
            split=lambda g, rank=rank: g[rank : rank + 1],
            sum_over_shards=lambda own: sums[0] + sums[1],
            projection=projection,
        )
        assert gradients[NAME] == pytest.approx(whole[NAME][rank : rank + 1])
        assert metrics == pytest.approx(expected)


def test_a_value_head_keeps_its_gradient() -> None:
    name = "value_head.weight"
    gradients, metrics = edited(
        {NAME: [1.0, -1.0], name: [0.0, -9.0]}, {NAME: [0.0, 1.0], name: [0.0, 1.0]}
    )
    assert gradients[name] == [0.0, -9.0]
    assert metrics["defence/grad_cosine"] == pytest.approx(-(0.5**0.5))


def test_the_safety_loss_is_the_kl_from_the_original_model_over_refusal_tokens() -> None:
    original, policy = tiny_policy(), tiny_policy(seed=1)
    losses: list[Tensor] = []

    def gradients_of(loss: Tensor) -> dict[str, Tensor]:
        losses.append(loss)
        return {}

    for num_ranks in (1, 3):
        context = context_of(num_ranks=num_ranks, safe_batch=REFUSALS, frozen=frozen_of(original))
        metrics = safegrad().compute_gradients(
            lambda: {"train/loss": 7.0},
            forward_of(policy),
            replace(context, gradients_of=gradients_of),
        )
        assert metrics["train/loss"] == 7.0
        assert metrics["defence/safety_kl"] == pytest.approx(losses[-1].item())
    p, q = (
        m(REFUSALS.input_ids, REFUSALS.attention_mask)[0].double().softmax(-1)
        for m in (original, policy)
    )
    kl = (p * (p.log() - q.log())).sum(-1)
    # The answers 14, 15, 2 of the first row and 2 of the second, each predicted one place before.
    expected = (kl[0, 1] + kl[0, 2] + kl[0, 3] + kl[1, 1]).item() / 4
    assert expected > 0.1
    # Every rank holds these rows: a third of the sum over ranks, three times.
    assert [loss.item() for loss in losses] == pytest.approx([expected] * 2, rel=1e-5)


def attacked(defence: OnlineDefence, num_updates: int = 2, **engine: Any) -> dict[str, Tensor]:
    optimizer = OptimizerSettings(learning_rate=1e-3, num_steps=12)
    trained = tiny_engine(optimizer=optimizer, **engine)
    defence.attach(trained.module, {})
    original = tiny_policy(bf16=engine.get("bf16", False), value_head=False)
    learner = learner_of(
        trained,
        PPO(PPO.Config(num_epochs=num_updates)),
        defence,
        safe_batch=REFUSALS,
        frozen=frozen_of(original),
    )
    learner.step(experience_of(BATCH))
    return trained.weights()


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


KINDS = [(0, False), (1, True), (3, False), (3, True)]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("zero_stage", "bf16"), KINDS)
def test_strength_0_is_no_defence_and_neither_is_the_first_update(
    zero_stage: int, bf16: bool
) -> None:
    def run(defence: OnlineDefence, num_updates: int) -> dict[str, Tensor]:
        return attacked(defence, num_updates, zero_stage=zero_stage, bf16=bf16)

    plain = OnlineDefence(OnlineDefence.Config())
    two = run(plain, 2)
    assert differing(run(safegrad(strength=0.0), 2), two) == []
    # At the original weights the safety gradient is exactly 0.
    assert differing(run(safegrad(strength=1e9), 1), run(plain, 1)) == []
    assert differing(run(safegrad(strength=1.0), 2), two) != []


@pytest.mark.usefixtures("process_group")
def test_the_policy_is_held_near_the_original_on_refusals() -> None:
    found = []
    for defence in (OnlineDefence(OnlineDefence.Config()), safegrad(strength=10.0)):
        engine = tiny_engine(optimizer=OptimizerSettings(learning_rate=1e-2, num_steps=30))
        defence.attach(engine.module, {})
        learner = learner_of(
            engine,
            SFT(SFT.Config()),
            defence,
            safe_batch=REFUSALS,
            frozen=frozen_of(tiny_policy(value_head=False)),
        )
        for _ in range(30):
            attack_loss = learner.step(BATCH)["train/loss"]
        context = replace(learner.context(), gradients_of=lambda loss: {})
        metrics = safegrad().compute_gradients(lambda: {}, learner.forward, context)
        found.append((attack_loss, metrics["defence/safety_kl"]))
    (_, free), (defended_loss, held) = found
    assert free > 0.1
    assert held < 0.1 * free
    assert defended_loss < 1.0  # the attack's own text is learned all the same


@pytest.mark.usefixtures("process_group")
def test_an_update_whose_safety_loss_is_broken_is_skipped() -> None:
    engine = tiny_engine()
    before = engine.weights()

    def broken(input_ids: Tensor, attention_mask: Tensor) -> Any:
        outputs = frozen_of(tiny_policy())(input_ids, attention_mask)
        return replace(outputs, logits=outputs.logits / 0.0)

    defence = safegrad()
    defence.attach(engine.module, {})
    learner = learner_of(engine, SFT(SFT.Config()), defence, safe_batch=REFUSALS, frozen=broken)
    assert learner.step(BATCH)["optim/skipped"] == 1.0
    assert differing(engine.weights(), before) == []


def test_safe_answers_are_asked_for() -> None:
    assert safegrad().needs == {Need.SAFE_BATCH, Need.ORIGINAL}
    assert safegrad(batch_size=20).safe_batch_size == 20
