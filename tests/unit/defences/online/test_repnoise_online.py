import math
from typing import Any

import pytest
import torch
from fakes import (
    GradientRecorder,
    context_of,
    experience_of,
    forward_of,
    learner_of,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor

from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.defences.online.repnoise_online import RepNoiseOnline
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.plugin import Need, OnlineDefence
from rpa_ray.types import LossTerm, PairBatch

pytestmark = pytest.mark.usefixtures("process_group")

ATTACK = experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]))
PAIRS = PairBatch(
    chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=6),
    rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=6),
)


def repnoise(**settings: Any) -> RepNoiseOnline:
    return RepNoiseOnline(RepNoiseOnline.Config(**settings))


def attacked(defence: OnlineDefence | None, num_steps: int = 3) -> dict[str, Tensor]:
    engine = tiny_engine(zero_stage=1, bf16=True)
    if defence is not None:
        defence.attach(engine.module, {})
    learner = learner_of(engine, PPO(PPO.Config()), defence, contrast_batch=PAIRS)
    for _ in range(num_steps):
        learner.step(ATTACK)
    return engine.weights()


def term_of(defence: RepNoiseOnline, *, num_ranks: int = 1, pairs: PairBatch = PAIRS) -> LossTerm:
    module = tiny_policy()
    defence.attach(module, {})
    context = context_of(contrast_batch=pairs, num_ranks=num_ranks)
    term = defence.extra_loss(forward_of(module), context)
    assert term is not None
    return term


def test_strength_0_is_no_defence_bit_for_bit() -> None:
    undefended, at_zero = attacked(None), attacked(repnoise(strength=0.0))
    assert [n for n in undefended if not torch.equal(undefended[n], at_zero[n])] == []
    assert repnoise(strength=0.0).needs == frozenset()


def gradients(defence: OnlineDefence, **batches: Any) -> dict[str, Tensor]:
    recorder = GradientRecorder(defence)
    engine = tiny_engine(optimizer=OptimizerSettings(learning_rate=0.0, num_steps=1))
    defence.attach(engine.module, {})
    learner_of(engine, PPO(PPO.Config(num_epochs=1)), recorder, **batches).step(ATTACK)
    return recorder.gradients


def test_without_noise_and_ascent_it_is_the_refusal_loss() -> None:
    retained = gradients(repnoise(alpha=0.0, beta=0.0, strength=2.0), contrast_batch=PAIRS)
    refused = gradients(RefusalLoss(RefusalLoss.Config(alpha=2.0)), safe_batch=PAIRS.chosen)
    assert retained.keys() == refused.keys()
    for name in refused:
        torch.testing.assert_close(retained[name], refused[name], rtol=0, atol=1e-7)


def test_without_noise_and_ascent_unsafe_answers_are_not_read() -> None:
    read: list[Tensor] = []
    module, defence = tiny_policy(), repnoise(alpha=0.0, beta=0.0)
    defence.attach(module, {})

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Any:
        read.append(input_ids)
        return forward_of(module)(input_ids, attention_mask)

    term = defence.extra_loss(forward, context_of(contrast_batch=PAIRS))
    assert len(read) == 1
    assert read[0] is PAIRS.chosen.input_ids
    assert term is not None
    assert list(term.metrics) == ["defence/retain_loss"]


def test_the_three_terms_add_up_with_their_weights() -> None:
    term = term_of(repnoise(strength=0.5, alpha=2.0, beta=3.0))
    seen = term.metrics
    total = seen["defence/retain_loss"] + 3.0 * seen["defence/noise_mmd"]
    total -= 2.0 * seen["defence/log_unsafe_level"]
    assert float(term.loss.detach()) == pytest.approx(0.5 * total, rel=1e-5)
    assert 0 < seen["defence/noise_mmd"] < 10
    # a model that knows nothing gives every token log(24) nats, of which there are L + 2 over L + 1
    assert seen["defence/log_unsafe_level"] == pytest.approx(
        math.log(1 + 4 / 3 * math.log(24)), 0.3
    )


def test_ranks_that_hold_the_same_rows_agree_on_retain_and_ascent() -> None:
    one, two = (term_of(repnoise(beta=0.0), num_ranks=n) for n in (1, 2))
    assert one.metrics == pytest.approx(two.metrics, rel=1e-5)


def test_the_noise_is_another_one_at_every_update_and_the_same_again() -> None:
    module, defence = tiny_policy(), repnoise(alpha=0.0)
    defence.attach(module, {})

    def noise(update: int) -> float:
        context = context_of(contrast_batch=PAIRS, update=update)
        term = defence.extra_loss(forward_of(module), context)
        assert term is not None
        return term.metrics["defence/noise_mmd"]

    assert noise(0) == noise(0)
    assert noise(0) != noise(1)


def test_an_attack_beside_it_makes_unsafe_answers_less_likely() -> None:
    def level(defence: RepNoiseOnline, *, num_steps: int) -> float:
        engine = tiny_engine(optimizer=OptimizerSettings(learning_rate=3e-3, num_steps=40))
        defence.attach(engine.module, {})
        attack = PPO(PPO.Config(num_epochs=1))
        learner = learner_of(engine, attack, defence, contrast_batch=PAIRS)
        metrics = [learner.step(ATTACK) for _ in range(num_steps)][-1]
        return metrics["defence/log_unsafe_level"]

    assert level(repnoise(beta=0.0), num_steps=10) > level(repnoise(beta=0.0), num_steps=1) + 0.1


def test_repnoise_asks_for_both_answers() -> None:
    config = RepNoiseOnline.Config()
    assert (config.alpha, config.beta, config.strength) == (1.0, 0.001, 1.0)
    assert repnoise(batch_size=16).needs == {Need.CONTRAST_BATCH}
    assert repnoise(batch_size=16).safe_batch_size == 16
