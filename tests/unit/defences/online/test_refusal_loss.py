import math
from typing import Any

import pytest
import torch
from fakes import (
    VOCAB_SIZE,
    GradientRecorder,
    context_of,
    experience_of,
    learner_of,
    tiny_engine,
    token_batch,
    uniform_forward,
)
from torch import Tensor

from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.plugin import Need, Objective, OnlineDefence
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, ModelOutputs

pytestmark = pytest.mark.usefixtures("process_group")

ATTACK_BATCHES = [
    experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]), seed=seed) for seed in range(3)
]
REFUSALS = token_batch([[1, 13, 14, 15, 2], [1, 16, 2]], num_prompt_tokens=2)


def refusal_loss(alpha: float, **settings: Any) -> RefusalLoss:
    return RefusalLoss(RefusalLoss.Config(alpha=alpha, **settings))


class NoLoss(Objective[Any, ModelOutputs]):
    """An attack that wants nothing: its loss is 0 whatever the model says."""

    def num_terms(self, batch: Any) -> Tensor:
        return torch.tensor(1)

    def loss(self, forward: Any, batch: Any, context: Any) -> LossTerm:
        tokens = batch.tokens
        return LossTerm(loss=0.0 * forward(tokens.input_ids, tokens.attention_mask).logits.sum())


def attacked(defence: OnlineDefence | None) -> dict[str, Tensor]:
    """Return the weights after 12 updates of a PPO attack under ZeRO 1 in bf16."""
    engine = tiny_engine(zero_stage=1, bf16=True)
    learner = learner_of(engine, PPO(PPO.Config()), defence, safe_batch=REFUSALS)
    for batch in ATTACK_BATCHES:
        learner.step(batch)
    assert engine.num_updates == 12
    return engine.weights()


def gradients(objective: Objective[Any, Any], defence: OnlineDefence | None) -> dict[str, Tensor]:
    recorder = GradientRecorder(defence)
    optimizer = OptimizerSettings(learning_rate=0.0, num_steps=1)
    engine = tiny_engine(optimizer=optimizer)
    learner_of(engine, objective, recorder, safe_batch=REFUSALS).step(ATTACK_BATCHES[0])
    return recorder.gradients


@pytest.mark.parametrize("probe_every", [0, 1, 10])
def test_alpha_0_is_no_defence_bit_for_bit(probe_every: int) -> None:
    undefended = attacked(None)
    at_zero = attacked(refusal_loss(0.0, probe_every=probe_every))
    assert [n for n in undefended if not torch.equal(undefended[n], at_zero[n])] == []


def test_the_gradient_is_the_attacks_plus_alpha_times_that_of_the_refusals() -> None:
    alpha = 5.0
    attack = gradients(PPO(PPO.Config(num_epochs=1)), None)
    refusal = gradients(NoLoss(), refusal_loss(1.0))
    both = gradients(PPO(PPO.Config(num_epochs=1)), refusal_loss(alpha))
    name = "policy.model.layers.0.mlp.up_proj.weight"
    assert float(attack[name].norm()) > 0.01
    assert float(refusal[name].norm()) > 0.01
    for name in both:
        expected = attack[name] + alpha * refusal[name]
        torch.testing.assert_close(both[name], expected, rtol=1e-5, atol=5e-6)


def test_without_an_attack_it_is_plain_training_on_refusals() -> None:
    defended = tiny_engine()
    learner = learner_of(defended, NoLoss(), refusal_loss(1.0), safe_batch=REFUSALS)
    plain = tiny_engine()
    for _ in range(3):
        learner.step(ATTACK_BATCHES[0])
        learner_of(plain, LanguageModel()).step(REFUSALS)
    one, other = defended.weights(), plain.weights()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


def test_it_is_the_mean_over_refusal_tokens_in_nats() -> None:
    # 4 tokens after the two of each prompt, each of probability 1 / VOCAB_SIZE
    context = context_of(safe_batch=REFUSALS)
    term = refusal_loss(100.0).extra_loss(uniform_forward, context)
    assert int(REFUSALS.loss_mask.sum()) == 4
    assert float(term.loss.detach()) == pytest.approx(100 * math.log(VOCAB_SIZE), rel=1e-6)
    # the metric is without alpha
    assert term.metrics["defence/refusal_loss"] == pytest.approx(math.log(VOCAB_SIZE), rel=1e-6)


def test_only_refusal_tokens_are_learned() -> None:
    outputs = uniform_forward(REFUSALS.input_ids, REFUSALS.attention_mask)
    context = context_of(safe_batch=REFUSALS)
    refusal_loss(1.0).extra_loss(lambda input_ids, attention_mask: outputs, context).loss.backward()
    assert outputs.logits.grad is not None
    # the logits at position t predict the token at t + 1
    learned = outputs.logits.grad.abs().sum(dim=-1) > 0
    assert learned.tolist() == [
        [False, True, True, True, False],
        [False, True, False, False, False],
    ]


def test_ranks_share_one_mean() -> None:
    one = refusal_loss(2.0).extra_loss(uniform_forward, context_of(safe_batch=REFUSALS))
    two = refusal_loss(2.0).extra_loss(
        uniform_forward, context_of(safe_batch=REFUSALS, num_ranks=2)
    )
    torch.testing.assert_close(one.loss, two.loss)


def test_every_update_draws_its_own_refusals() -> None:
    draws = []

    def next_safe_batch() -> Any:
        draws.append(len(draws))
        return REFUSALS

    # two of the four are measured, on what they learn from
    defence = refusal_loss(1.0, probe_every=2)
    learner = learner_of(tiny_engine(), PPO(PPO.Config(num_epochs=4)), defence)
    learner._next_safe_batch = next_safe_batch
    learner.step(ATTACK_BATCHES[0])
    assert len(draws) == 4


def test_refusal_loss_asks_for_safe_batches_and_a_positive_alpha() -> None:
    assert RefusalLoss.requires == {Need.SAFE_BATCH}
    assert RefusalLoss.Config().alpha == 100.0
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RefusalLoss.Config(alpha=-1.0)


class Updates(Objective[Any, ModelOutputs]):
    """PPO of one update a batch, whose loss can be broken."""

    def __init__(self) -> None:
        self.inner = PPO(PPO.Config(num_epochs=1))
        self.is_broken = False

    def num_terms(self, batch: Any) -> Tensor:
        return self.inner.num_terms(batch)

    def loss(self, forward: Any, batch: Any, context: Any) -> LossTerm:
        term = self.inner.loss(forward, batch, context)
        return LossTerm(loss=term.loss * float("nan")) if self.is_broken else term


def probed(*, alpha: float, probe_every: int = 1, **engine: Any) -> dict[str, float]:
    learner = learner_of(
        tiny_engine(**engine),
        PPO(PPO.Config(num_epochs=1)),
        refusal_loss(alpha, probe_every=probe_every),
        safe_batch=REFUSALS,
    )
    return learner.step(ATTACK_BATCHES[0])


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_norms_and_cosine_are_those_of_each_loss_alone(zero_stage: int) -> None:
    attack = gradients(PPO(PPO.Config(num_epochs=1)), None)
    refusal = gradients(NoLoss(), refusal_loss(1.0))
    one, other = (
        torch.cat([g.flatten() for name, g in sorted(found.items()) if name.startswith("policy.")])
        for found in (attack, refusal)
    )
    metrics = probed(alpha=3.0, zero_stage=zero_stage)
    assert metrics["defence/task_grad_norm"] == pytest.approx(float(one.norm()), rel=1e-4)
    assert metrics["defence/refusal_grad_norm"] == pytest.approx(float(other.norm()), rel=1e-4)
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    assert abs(cosine) > 0.01
    assert metrics["defence/grad_cosine"] == pytest.approx(cosine, abs=1e-4)


def test_what_is_measured_changes_no_weight() -> None:
    bits = [attacked(refusal_loss(2.0, probe_every=every)) for every in (0, 1)]
    assert [n for n in bits[0] if not torch.equal(bits[0][n], bits[1][n])] == []


def test_gradients_are_measured_at_every_so_many_updates() -> None:
    learner = learner_of(
        tiny_engine(), Updates(), refusal_loss(1.0, probe_every=3), safe_batch=REFUSALS
    )
    seen = ["defence/grad_cosine" in learner.step(ATTACK_BATCHES[0]) for _ in range(7)]
    assert seen == [True, False, False, True, False, False, True]
    assert "defence/grad_cosine" not in probed(alpha=1.0, probe_every=0)
    assert RefusalLoss.Config().probe_every == 10


def test_an_update_that_was_skipped_leaves_no_measurement_behind() -> None:
    attack = Updates()
    learner = learner_of(tiny_engine(), attack, refusal_loss(1.0, probe_every=1))
    drawn: list[Any] = []

    def next_safe_batch() -> Any:
        drawn.append(token_batch([[1, 13 + len(drawn), 2]]))
        return drawn[-1]

    learner._next_safe_batch = next_safe_batch
    attack.is_broken = True
    assert learner.step(ATTACK_BATCHES[0])["optim/skipped"] == 1.0
    attack.is_broken = False
    metrics = learner.step(ATTACK_BATCHES[0])
    assert len(drawn) == 2
    alone = learner_of(
        tiny_engine(), Updates(), refusal_loss(1.0, probe_every=1), safe_batch=drawn[1]
    ).step(ATTACK_BATCHES[0])
    assert metrics["defence/refusal_grad_norm"] == alone["defence/refusal_grad_norm"]


def test_a_prefix_is_asked_for_only_where_it_is_wanted() -> None:
    assert refusal_loss(1.0).needs == {Need.SAFE_BATCH}
    assert refusal_loss(1.0, prefix="recovery").needs == {Need.SAFE_BATCH, Need.RECOVERY_PREFIX}
