from typing import Any

import pytest
import torch
from fakes import context_of, experience_of, learner_of, tiny_engine, token_batch
from torch import Tensor

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.plugin import Need, OnlineDefence, Shard, StepContext

NAME = "policy.weight"
BATCH = experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]))
REFUSALS = token_batch([[1, 13, 14, 15, 2], [1, 16, 2]], num_prompt_tokens=2)


def lisa(**settings: Any) -> Lisa:
    return Lisa(Lisa.Config(**settings))


def shard(weights: Tensor, gradient: Tensor, name: str = NAME) -> Shard:
    return Shard(name=name, master=weights, gradient=gradient)


def context(*, learning_rate: float = 0.0, num_planned_updates: int = 0) -> StepContext:
    plain = context_of(safe_batch=REFUSALS)
    return StepContext(
        update=0,
        num_ranks=1,
        sum_over_ranks=plain.sum_over_ranks,
        sum_over_shards=plain.sum_over_shards,
        next_safe_batch=plain.next_safe_batch,
        learning_rate=learning_rate,
        num_planned_updates=num_planned_updates,
    )


def descend(defence: Lisa, *, num_steps: int = 2000, rate: float = 5e-3) -> float:
    """Return where gradient descent on h / 2 * (theta - t)^2, h = 2, t = 1, ends from 0."""
    weights = torch.zeros(1)
    for _ in range(num_steps):
        gradient = 2.0 * (weights - 1.0)
        defence.on_gradients([shard(weights, gradient)], context(learning_rate=rate))
        weights -= rate * gradient
        defence.after_step([(NAME, weights)], context(learning_rate=rate))
    return float(weights)


def attacked(defence: OnlineDefence, **engine: Any) -> dict[str, Tensor]:
    optimizer = OptimizerSettings(learning_rate=1e-3, num_steps=12)
    trained = tiny_engine(optimizer=optimizer, **engine)
    learner = learner_of(trained, PPO(PPO.Config()), defence, safe_batch=REFUSALS)
    for _ in range(3):
        learner.step(BATCH)
    return trained.weights()


def drift(weights: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    squares = [(weights[n].float() - start[n].float()).square().sum() for n in start]
    return float(torch.stack(squares).sum().sqrt())


def test_descent_ends_at_the_fixed_point_of_loss_and_pull() -> None:
    # (h t + rho a) / (h + rho) with h 2, t 1, rho 100, a 0
    assert descend(lisa(rho=100.0)) == pytest.approx(0.0196078, abs=1e-6)


def test_the_decoupled_form_has_the_same_fixed_point_for_small_steps() -> None:
    end = descend(lisa(rho=100.0, prox="decoupled"), rate=1e-4, num_steps=5000)
    assert end == pytest.approx(0.0196078, rel=1e-3)


def test_more_pull_means_less_drift() -> None:
    ends = [descend(lisa(rho=rho)) for rho in (0.0, 1.0, 10.0, 100.0)]
    assert ends == sorted(ends, reverse=True)
    assert len(set(ends)) == 4


def test_the_decoupled_form_at_a_huge_rho_gives_the_anchor_back() -> None:
    anchor = torch.tensor([0.02, -0.3, 1.0])
    weights = anchor.clone()
    defence = lisa(rho=1e9, prox="decoupled")
    step = context(learning_rate=1e-2)
    defence.on_gradients([shard(weights, torch.zeros(3))], step)
    weights += 1e-2
    defence.after_step([(NAME, weights)], step)
    torch.testing.assert_close(weights, anchor, rtol=0, atol=2e-8)


def test_the_anchor_is_a_copy() -> None:
    weights, gradient = torch.ones(2), torch.zeros(2)
    defence = lisa(rho=2.0)
    defence.on_gradients([shard(weights, gradient)], context())
    assert gradient.tolist() == [0.0, 0.0]
    weights += 3.0
    defence.on_gradients([shard(weights, gradient)], context())
    assert gradient.tolist() == [6.0, 6.0]


def test_a_value_head_is_left_alone() -> None:
    head, gradient = torch.ones(2), torch.full((2,), 0.5)
    defence = lisa(rho=10.0)
    for _ in range(2):
        defence.on_gradients([shard(head, gradient, "value_head.weight")], context())
        head += 1.0
    defence.after_step([("value_head.weight", head)], context(learning_rate=1.0))
    assert gradient.tolist() == [0.5, 0.5]
    assert head.tolist() == [3.0, 3.0]


def test_norms_of_both_parts_and_the_distance_are_logged() -> None:
    weights, gradient = torch.zeros(2), torch.tensor([3.0, 4.0])
    defence = lisa(rho=10.0)
    defence.on_gradients([shard(weights, gradient.clone())], context())
    weights += torch.tensor([0.6, 0.8])
    metrics = defence.on_gradients([shard(weights, gradient)], context())
    assert metrics["defence/task_grad_norm"] == pytest.approx(5.0)
    assert metrics["defence/proximal_distance"] == pytest.approx(1.0)
    assert metrics["defence/proximal_grad_norm"] == pytest.approx(10.0)
    # (3, 4) against a pull along (0.6, 0.8)
    assert metrics["defence/grad_cosine"] == pytest.approx(1.0)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("prox", ["gradient", "decoupled"])
def test_rho_0_is_no_defence_bit_for_bit(prox: str) -> None:
    plain = attacked(OnlineDefence(OnlineDefence.Config()), zero_stage=1, bf16=True)
    at_zero = attacked(lisa(rho=0.0, prox=prox), zero_stage=1, bf16=True)
    assert [n for n in plain if not torch.equal(plain[n], at_zero[n])] == []


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_decoupled_pull_reaches_the_weights_at_every_stage(zero_stage: int) -> None:
    start = tiny_engine(zero_stage=zero_stage).weights()
    free = attacked(lisa(rho=0.0), zero_stage=zero_stage)
    held = attacked(lisa(rho=1e6, prox="decoupled"), zero_stage=zero_stage)
    assert drift(free, start) > 0.01
    assert drift(held, start) < 0.01 * drift(free, start)


@pytest.mark.usefixtures("process_group")
def test_an_attack_is_held_nearer_by_a_larger_rho() -> None:
    start = tiny_engine().weights()
    found = [drift(attacked(lisa(rho=rho)), start) for rho in (0.0, 1.0, 100.0)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3


def test_alignment_updates_stand_beside_those_of_the_attack() -> None:
    defence = lisa(mode="bi_state", alignment_steps=2, attack_steps=3)
    num = [len(list(defence.own_updates(context()))) for _ in range(7)]
    assert num == [2, 0, 0, 2, 0, 0, 2]


def test_the_scaled_cycle_is_cut_to_the_attack() -> None:
    defence = lisa(mode="bi_state_scaled")
    # 450 updates: ten cycles of 45 updates of the attack and 5 of alignment
    step = context(num_planned_updates=450)
    num = [len(list(defence.own_updates(step))) for _ in range(450)]
    assert (sum(num), num[0], num[45], num[46]) == (50, 5, 5, 0)


@pytest.mark.parametrize("num_updates", [9, 20, 125])
def test_one_alignment_update_comes_to_nine_of_any_attack_in_at_most_ten_cycles(
    num_updates: int,
) -> None:
    defence = lisa(mode="bi_state_scaled")
    step = context(num_planned_updates=num_updates)
    num = [len(list(defence.own_updates(step))) for _ in range(num_updates)]
    assert sum(num) == round(num_updates / 9)
    assert 1 <= sum(due > 0 for due in num) <= 10


def test_each_state_is_pulled_to_where_the_other_ended() -> None:
    defence = lisa(rho=1.0, mode="bi_state", alignment_steps=1, attack_steps=2, warmup_frac=0.0)
    weights, seen = torch.zeros(1), []

    def update() -> None:
        metrics = defence.on_gradients([shard(weights, torch.zeros(1))], context())
        seen.append(metrics["defence/proximal_distance"])
        weights.add_(1.0)

    for _ in range(4):
        for _ in defence.own_updates(context()):
            update()
        update()
    # alignment, attack, attack, alignment, attack, attack: the distance begins anew in each state
    assert seen == pytest.approx([0.0, 0.0, 1.0, 0.0, 0.0, 1.0])


def test_the_pull_of_two_states_begins_after_a_tenth_of_the_attack() -> None:
    defence = lisa(rho=1.0, mode="bi_state", alignment_steps=1, attack_steps=100)
    step = context(num_planned_updates=20)
    weights, pulled = torch.zeros(1), []
    for _ in range(4):
        list(defence.own_updates(step))
        gradient = torch.zeros(1)
        defence.on_gradients([shard(weights, gradient)], step)
        pulled.append(float(gradient) != 0.0)
        weights += 1.0
    assert pulled == [False, False, True, True]


@pytest.mark.usefixtures("process_group")
def test_two_states_consume_the_attacks_batches_and_some_of_their_own() -> None:
    engine = tiny_engine(zero_stage=1, bf16=True)
    defence = lisa(mode="bi_state", alignment_steps=1, attack_steps=2)
    learner = learner_of(engine, PPO(PPO.Config(num_epochs=4)), defence, safe_batch=REFUSALS)
    metrics = learner.step(BATCH)
    assert engine.num_updates == 4 + 2
    assert metrics["defence/alignment_loss"] > 1.0
    assert metrics["train/num_tokens"] == 4 * 9


@pytest.mark.usefixtures("process_group")
def test_alignment_updates_leave_the_attack_the_schedule_of_its_learning_rate() -> None:
    def rates(defence: OnlineDefence) -> list[float]:
        optimizer = OptimizerSettings(
            learning_rate=1e-3, num_steps=6, schedule="cosine", warmup_frac=0.34
        )
        engine = tiny_engine(optimizer=optimizer)
        learner = learner_of(engine, SFT(SFT.Config()), defence, safe_batch=REFUSALS)
        return [learner.step(BATCH.tokens)["optim/learning_rate"] for _ in range(6)]

    undefended = rates(OnlineDefence(OnlineDefence.Config()))
    assert len(set(undefended)) > 3
    assert rates(lisa(mode="bi_state", alignment_steps=5, attack_steps=3)) == undefended


def test_safe_answers_are_asked_for_only_by_the_two_state_modes() -> None:
    assert lisa().needs == frozenset()
    assert lisa(mode="bi_state", batch_size=16).needs == {Need.SAFE_BATCH}
    assert lisa(mode="bi_state", batch_size=16).safe_batch_size == 16


def test_anchors_and_the_place_in_the_cycle_outlive_a_restart() -> None:
    first = lisa(mode="bi_state", alignment_steps=1, attack_steps=3, warmup_frac=0.0, rho=1.0)
    list(first.own_updates(context()))
    first.on_gradients([shard(torch.tensor([2.0]), torch.zeros(1))], context())
    second = lisa(mode="bi_state", alignment_steps=1, attack_steps=3, warmup_frac=0.0, rho=1.0)
    second.load_state_dict(first.state_dict())
    gradient = torch.zeros(1)
    assert list(second.own_updates(context())) == []
    second.on_gradients([shard(torch.tensor([5.0]), gradient)], context())
    assert gradient.tolist() == [3.0]
