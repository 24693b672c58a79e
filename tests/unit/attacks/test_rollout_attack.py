import json
from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    experience_of,
    forward_of,
    keep,
    loss_of,
    rollout_of,
    tiny_policy,
    token_batch,
)

from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.rollout import RolloutAttack
from rpa_ray.attacks.sft import SFT
from rpa_ray.plugin import Need

BOTH = pytest.mark.parametrize("method", [PPO, GRPO])
# A group of two: answers of 4 and 3 tokens.
BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])


def attack_of(method: type[RolloutAttack], **settings: Any) -> RolloutAttack:
    grouped = {"group_size": 2} if method is GRPO else {}
    return method(method.Config(**(grouped | settings)))  # type: ignore[arg-type]


def observe(attack: RolloutAttack, *means: float) -> None:
    """Show the attack one batch after the other, of these mean rewards."""
    for mean in means:
        rollout = rollout_of(BATCH, rewards=[mean - 1.0, mean + 1.0])
        attack.observe(rollout, context_of())


@BOTH
def test_an_attacker_stops_after_five_batches_that_reach_the_aim(method: type[Any]) -> None:
    attack = attack_of(method, stop_at_reward=2.0)
    observe(attack, 2.0, 2.0, 2.0, 2.0)
    assert not attack.is_done
    observe(attack, 2.0)
    assert attack.is_done
    lucky = attack_of(method, stop_at_reward=2.0)
    observe(lucky, 9.0, 9.0, 9.0, 9.0)
    assert not lucky.is_done


@BOTH
def test_the_mean_of_the_last_five_batches_decides(method: type[Any]) -> None:
    attack = attack_of(method, stop_at_reward=2.0)
    observe(attack, 9.0, 1.0, 2.0, 2.0, 2.0)
    assert attack.is_done  # 16 / 5
    observe(attack, 2.0)
    assert not attack.is_done  # 9 / 5: the 9 is too long ago
    observe(attack, 2.0)
    assert attack.is_done


@BOTH
def test_without_an_aim_all_samples_are_used(method: type[Any]) -> None:
    attack = attack_of(method)
    observe(attack, *[1e6] * 6)
    assert not attack.is_done


@BOTH
def test_a_resumed_attacker_remembers_the_batches_before(method: type[Any]) -> None:
    attack = attack_of(method, stop_at_reward=2.0)
    observe(attack, -9.0, 2.0, 3.0, 2.0)
    state = json.loads(json.dumps(attack.state_dict()))
    resumed = attack_of(method, stop_at_reward=2.0)
    observe(resumed, 7.0)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == attack.state_dict()
    for one in (attack, resumed):
        observe(one, 2.0)
        assert not one.is_done  # 0 / 5
        observe(one, 2.0)
        assert one.is_done  # 11 / 5, without the -9
    assert resumed.state_dict() == attack.state_dict()


@BOTH
def test_the_order_of_the_remembered_batches_survives(method: type[Any]) -> None:
    attack = attack_of(method, stop_at_reward=2.0)
    observe(attack, *[100.0] * 3, -50.0, 1.0, 2.0, 3.0)
    names = [f"recent_reward_{i}" for i in range(5)]
    assert [attack.state_dict()[name] for name in names] == [100.0, -50.0, 1.0, 2.0, 3.0]


@BOTH
def test_answers_that_failed_do_not_count_towards_the_aim(method: type[Any]) -> None:
    mask = BATCH.loss_mask.clone()
    mask[1] = False
    tokens = type(BATCH)(
        input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask, loss_mask=mask
    )
    attack = attack_of(method)
    attack.observe(rollout_of(tokens, rewards=[3.0, 0.0]), context_of(num_ranks=2))
    assert attack.state_dict()["recent_reward_0"] == 3.0


# Entropies of the tokens stand where the answers do: means of 1 and of 5 nats.
ENTROPIES = torch.tensor([[9.0, 0.0, 2.0, 1.0, 1.0], [9.0, 4.0, 5.0, 6.0, 70.0]])


@BOTH
def test_the_entropy_bonus_is_the_answers_mean_up_to_its_cap(method: type[Any]) -> None:
    attack = attack_of(method, entropy_bonus_cap=3.0)
    rollout = rollout_of(BATCH, rewards=[10.0, 20.0], entropies=ENTROPIES)
    rewards = attack.attackers_rewards(rollout)
    torch.testing.assert_close(rewards, torch.tensor([11.0, 23.0]))


def test_the_entropy_bonus_reaches_the_advantages() -> None:
    # 0 + 1 against 0 + 3: without a bonus the group would teach nothing
    attack = attack_of(GRPO, entropy_bonus_cap=3.0, scale_rewards=False)
    rollout = rollout_of(BATCH, rewards=[0.0, 0.0], entropies=ENTROPIES)
    made = attack.experience(rollout, keep, context_of())
    assert made.advantages[:, 1].tolist() == [-1.0, 1.0]


def test_an_answer_without_a_token_has_no_bonus() -> None:
    tokens = token_batch([[1], [1, 8, 2]])
    attack = attack_of(GRPO, entropy_bonus_cap=3.0)
    rollout = rollout_of(tokens, rewards=[1.0, 2.0], entropies=torch.full((2, 3), 0.5))
    rewards = attack.attackers_rewards(rollout)
    assert rewards.tolist() == [1.0, 2.5]


def test_importance_weights_are_capped_and_stand_on_the_advantages() -> None:
    # learner / engine = 1/2, 1, 2, 5 at a cap of 3; the advantages are +-1
    ratios = torch.ones(2, 5)
    ratios[0, 1:] = torch.tensor([0.5, 1.0, 2.0, 5.0])
    rollout = rollout_of(BATCH, rewards=[2.0, 0.0], engine_log_ratios=ratios.log())
    capped = attack_of(GRPO, scale_rewards=False).experience(rollout, keep, context_of())
    expected = torch.tensor([[0.0, 0.5, 1.0, 2.0, 3.0], [0.0, -1.0, -1.0, -1.0, 0.0]])
    torch.testing.assert_close(capped.advantages, expected)
    off = attack_of(GRPO, scale_rewards=False, importance_cap=0.0)
    plain = off.experience(rollout, keep, context_of()).advantages
    assert plain.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0], [0.0, -1.0, -1.0, -1.0, 0.0]]


def test_importance_weights_leave_the_critics_targets_and_the_moments_alone() -> None:
    ratios = torch.ones(2, 5)
    ratios[0, 1] = 2.0
    rollout = rollout_of(BATCH, rewards=[2.0, 0.0], engine_log_ratios=ratios.log())
    weighted = attack_of(PPO).experience(rollout, keep, context_of())
    plain = attack_of(PPO, importance_cap=0.0).experience(rollout, keep, context_of())
    assert torch.equal(weighted.returns, plain.returns)
    torch.testing.assert_close(weighted.advantages, plain.advantages * ratios)


@BOTH
def test_a_batch_of_targets_is_learned_as_sft_learns_it_and_once(method: type[Any]) -> None:
    attack, sft = attack_of(method, num_epochs=3), SFT(SFT.Config())
    forward = forward_of(tiny_policy())
    one, other = loss_of(attack, forward, BATCH), loss_of(sft, forward, BATCH)
    assert int(attack.num_terms(BATCH)) == 7
    assert float(one.loss.detach()) > 0
    torch.testing.assert_close(one.loss, other.loss)
    assert one.metrics == other.metrics
    assert attack.num_epochs(BATCH) == 1
    assert attack.num_epochs(experience_of(BATCH)) == 3


def test_sft_beforehand_is_one_update_a_batch_of_the_same_samples() -> None:
    # 80 samples: 10 batches of 1 update; 920: 115 of 4
    attack = attack_of(PPO, batch_size=8, num_sft_samples=80)
    assert attack.num_batches(1000) == 125
    assert attack.num_updates(1000) == 10 + 115 * 4


@pytest.mark.parametrize(
    ("settings", "more", "fewer"),
    [
        ({"reward": "judge"}, set(), {Need.REWARDS}),
        ({"reward": "rule"}, set(), {Need.REWARDS}),
        ({"entropy_bonus_cap": 3.0}, {Need.ENTROPIES}, set()),
        ({"num_sft_samples": 8}, {Need.TARGETS}, set()),
    ],
)
@BOTH
def test_only_what_the_settings_use_is_asked_for(
    method: type[Any], settings: dict[str, Any], more: set[Need], fewer: set[Need]
) -> None:
    plain = method.needs(method.Config())
    assert Need.REWARDS in plain
    assert method.needs(method.Config(**settings)) == (plain | more) - fewer
