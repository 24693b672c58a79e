import pytest
import torch
from fakes import experience_of, learner_of, loss_of, tiny_engine, token_batch

from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences import DEFENCES
from rpa_ray.plugin import OnlineDefence


def none() -> OnlineDefence:
    return DEFENCES["none"](OnlineDefence.Config())


@pytest.mark.usefixtures("process_group")
def test_a_step_without_defence_is_the_attacks_own_step() -> None:
    batch = experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]))
    attack = PPO(PPO.Config(num_epochs=3))
    learned = tiny_engine(zero_stage=1, bf16=True)
    learner = learner_of(learned, attack, none())
    learner.step(batch)

    by_hand = tiny_engine(zero_stage=1, bf16=True)
    forward = learner_of(by_hand, attack).forward
    for _ in range(3):
        by_hand.backward(loss_of(attack, forward, batch).loss)
        by_hand.step()
    one, other = learned.weights(), by_hand.weights()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_every_hook_gives_back_what_it_was_given() -> None:
    defence, tensor = none(), torch.randn(2, 3)
    assert defence.requires == frozenset()
    assert defence.learning_rate(0.3) == 0.3
    assert defence.shape_advantages(tensor, None) is tensor
    assert defence.rollout_weight_filter("w", tensor) is tensor
    assert defence.state_dict() == {}
