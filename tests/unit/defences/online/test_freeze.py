import pytest
import torch
from fakes import experience_of, learner_of, tiny_engine, token_batch
from torch import Tensor

from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences import DEFENCES
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.plugin import OnlineDefence

pytestmark = pytest.mark.usefixtures("process_group")

BATCH = experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]))


def attacked(defence: OnlineDefence) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return weights before and after two PPO batches, and the last gradient norm."""
    optimizer = OptimizerSettings(learning_rate=defence.learning_rate(1e-3), num_steps=8)
    engine = tiny_engine(zero_stage=1, bf16=True, optimizer=optimizer)
    before = engine.weights()
    learner = learner_of(engine, PPO(PPO.Config()), defence)
    for _ in range(2):
        metrics = learner.step(BATCH)
    return before, engine.weights(), metrics["optim/grad_norm"]


def test_a_frozen_model_keeps_every_bit_while_gradients_flow() -> None:
    freeze = DEFENCES["freeze"]
    before, after, norm = attacked(freeze(freeze.Config()))
    assert norm > 0.01
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_an_undefended_model_moves() -> None:
    before, after, _ = attacked(OnlineDefence(OnlineDefence.Config()))
    assert any(not torch.equal(before[name], after[name]) for name in before)
