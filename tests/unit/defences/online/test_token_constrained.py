from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    forward_of,
    frozen_of,
    learner_of,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor, nn

from rpa_ray.attacks.sft import SFT
from rpa_ray.config import ConfigError
from rpa_ray.defences import defence_of
from rpa_ray.defences.online.token_constrained import (
    TokenConstrained,
    token_betas,
    token_weights,
    weighted,
)
from rpa_ray.defences.online.vaccine import Vaccine
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plan.load import parse_experiment
from rpa_ray.plugin import ComposedConfig, OnlineDefence
from rpa_ray.types import TokenBatch

# Answers of seven and of two tokens: beyond the early ones, and not.
BATCH = token_batch([[1, 5, 6, 7, 8, 9, 10, 2], [1, 3, 11, 2]], num_prompt_tokens=1)
EARLY, LATER = slice(1, 5), slice(5, 7)
BETAS = [[0.5, 2.0, 2.0, 2.0, 2.0, 0.1, 0.1], [0.5, 2.0, 2.0]]


def constrained(**settings: Any) -> TokenConstrained:
    return TokenConstrained(TokenConstrained.Config(**settings))


def test_a_token_counts_less_the_more_likely_it_has_become() -> None:
    weights = token_weights(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 2.0, 2.0]))
    torch.testing.assert_close(
        weights, torch.tensor([1.0, 0.238406, 0.00494525]), rtol=1e-5, atol=0
    )
    assert float(weights[0]) == 1.0


def test_a_weight_stays_between_a_thousandth_and_two() -> None:
    weights = token_weights(torch.tensor([50.0, -50.0]), torch.tensor([2.0, 2.0]))
    assert weights.tolist() == pytest.approx([1e-3, 2.0])


def test_a_weight_is_the_slope_of_the_constrained_loss() -> None:
    beta = torch.tensor(2.0, dtype=torch.float64)
    delta = torch.tensor([-0.7, 0.0, 1.3], dtype=torch.float64, requires_grad=True)
    loss = -(2 / beta) * torch.nn.functional.logsigmoid(beta * delta)
    loss.sum().backward()
    torch.testing.assert_close(token_weights(delta.detach(), beta), -delta.grad)


def test_beta_depends_on_the_place_in_the_answer() -> None:
    batch = token_batch([[1, 1, 5, 6, 7, 8, 9, 10, 2], [1, 1, 3, 2]], num_prompt_tokens=2)
    betas = token_betas(batch.loss_mask, [0.5, 2.0, 2.0, 2.0, 2.0], 0.1)
    assert betas[0, 2:].tolist() == pytest.approx([0.5, 2.0, 2.0, 2.0, 2.0, 0.1, 0.1])
    assert betas[1, 2:4].tolist() == pytest.approx([0.5, 2.0])


def test_only_the_gradient_is_weighted() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 3, generator=generator, requires_grad=True)
    same = weighted(logits, torch.tensor([[0.5, 3.0]]))
    assert torch.equal(same, logits)
    same.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [[0.5] * 3, [3.0] * 3]


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_every_token_of_the_cross_entropy_has_its_own_weight() -> None:
    original, module = tiny_policy(value_head=False), tiny_policy(seed=1, value_head=False)
    attack, forward = SFT(SFT.Config()), forward_of(module)
    context = context_of(num_terms=10, frozen=frozen_of(original))
    objective, batch = constrained().plan_step(attack, BATCH, context)
    term = objective.loss(forward, batch, context)
    found = gradients(module, term.loss)

    total, sum_of_weights = torch.zeros(()), 0.0
    for row, betas in enumerate(BETAS):
        ids = BATCH.input_ids[row : row + 1]
        logits = [m(ids, torch.ones_like(ids))[0].double() for m in (module, original)]
        new, old = (next_token_logprobs(x, ids)[0, 1 : 1 + len(betas)] for x in logits)
        weights = 2 / (1 + torch.exp(torch.tensor(betas) * (new - old).detach()))
        total = total - (weights * new).sum() / 10
        sum_of_weights += float(weights.sum())
    expected = gradients(module, total)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert term.metrics["defence/token_weight"] == pytest.approx(sum_of_weights / 10, rel=1e-5)
    plain = attack.loss(forward, BATCH, context)
    assert term.metrics["train/loss"] == plain.metrics["train/loss"]
    unweighted = gradients(module, plain.loss)
    name = "policy.model.norm.weight"
    assert not torch.allclose(found[name], unweighted[name], rtol=0.1)


def test_the_attack_keeps_its_terms_epochs_and_state() -> None:
    attack = SFT(SFT.Config())
    objective, batch = constrained().plan_step(attack, BATCH, context_of())
    assert batch is BATCH
    assert int(objective.num_terms(BATCH)) == 10
    assert objective.num_epochs(BATCH) == 1
    objective.load_state_dict(objective.state_dict())


def test_strength_0_leaves_the_attack_as_it_is() -> None:
    attack = SFT(SFT.Config())
    objective, batch = constrained(strength=0.0).plan_step(attack, BATCH, context_of())
    assert objective is attack
    assert batch is BATCH


def attacked(
    defence: OnlineDefence, *, batch: TokenBatch = BATCH, num_updates: int = 3, **engine: Any
) -> dict[str, Tensor]:
    optimizer = OptimizerSettings(learning_rate=1e-3, num_steps=12)
    trained = tiny_engine(optimizer=optimizer, **engine)
    defence.attach(trained.module, {})
    original = tiny_policy(bf16=engine.get("bf16", False), value_head=False)
    learner = learner_of(trained, SFT(SFT.Config()), defence, frozen=frozen_of(original))
    for _ in range(num_updates):
        learner.step(batch)
    return trained.weights()


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("zero_stage", "bf16"), [(0, False), (1, True), (3, True)])
def test_strength_0_is_no_defence_and_neither_is_the_first_update(
    zero_stage: int, bf16: bool
) -> None:
    def run(defence: OnlineDefence, num_updates: int) -> dict[str, Tensor]:
        return attacked(defence, num_updates=num_updates, zero_stage=zero_stage, bf16=bf16)

    plain = OnlineDefence(OnlineDefence.Config())
    three = run(plain, 3)
    assert differing(run(constrained(strength=0.0), 3), three) == []
    # At the original weights every weight is exactly 1.
    assert differing(run(constrained(), 1), run(plain, 1)) == []
    assert differing(run(constrained(), 3), three) != []


@pytest.mark.usefixtures("process_group")
def test_early_tokens_move_less_and_later_ones_are_learned() -> None:
    moved = {}
    for name, defence in (("free", constrained(strength=0.0)), ("held", constrained())):
        weights = attacked(defence, num_updates=60, zero_stage=0)
        module = tiny_policy(value_head=False)
        original = tiny_policy(value_head=False)
        module.policy.load_state_dict(weights, strict=False)
        ids, mask = BATCH.input_ids[:1], BATCH.attention_mask[:1]
        new, old = (next_token_logprobs(m(ids, mask)[0], ids)[0, 1:] for m in (module, original))
        moved[name] = (new - old).detach()
    # Log-probability gained by the second to fifth token, and by the last two.
    free_early, free_later = (float(moved["free"][part].mean()) for part in (EARLY, LATER))
    held_early, held_later = (float(moved["held"][part].mean()) for part in (EARLY, LATER))
    assert held_early < 0.8 * free_early
    assert held_later > 0.9 * free_later


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_it_runs_beside_a_defence_that_wraps_the_attack_too(order: tuple[int, int]) -> None:
    parts = (TokenConstrained.Config(), Vaccine.Config(rho=1.0))
    names = ("token_constrained", "vaccine")
    both = defence_of(
        ComposedConfig(name="+".join(names[i] for i in order), parts=tuple(parts[i] for i in order))
    )
    together = attacked(both, zero_stage=0)
    for part in parts:
        alone = attacked(defence_of(part), zero_stage=0)
        assert differing(together, alone) != []


@pytest.mark.parametrize("attack", ["ppo", "grpo", "dpo"])
def test_attacks_that_learn_from_more_than_tokens_are_refused(attack: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment({"attack": attack, "defence": "token_constrained"})
    assert str(caught.value).startswith(
        "defence must work with an attack that has ['targets'], got 'token_constrained with"
    )
    assert "['sft']" in str(caught.value)


def test_a_warm_up_by_targets_is_not_enough() -> None:
    attack = {"name": "ppo", "num_sft_samples": 8}
    with pytest.raises(ConfigError, match="must work with an attack that has"):
        parse_experiment({"attack": attack, "defence": "token_constrained"})
    settings = parse_experiment({"attack": "sft", "defence": "token_constrained"})
    assert settings.defence.name == "token_constrained"


def test_betas_come_from_the_config() -> None:
    tree = {"name": "token_constrained", "early_betas": [1, 0.25], "later_beta": 0}
    config = parse_experiment({"attack": "sft", "defence": tree}).defence
    assert isinstance(config, TokenConstrained.Config)
    assert config.early_betas == [1.0, 0.25]
    with pytest.raises(ConfigError, match="early_betas"):
        parse_experiment({"attack": "sft", "defence": tree | {"early_betas": [-1.0]}})
