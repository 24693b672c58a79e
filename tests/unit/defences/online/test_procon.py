from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    experience_of,
    forward_of,
    frozen_of,
    learner_of,
    referenced_pairs,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor, nn

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.config import LoraSettings
from rpa_ray.defences.online.procon import ProCon
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import add_lora
from rpa_ray.plugin import Need, OnlineDefence, StepContext
from rpa_ray.types import LossTerm, TokenBatch

ATTACK = experience_of(token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]]))
REFUSALS = token_batch([[1, 13, 4, 15, 2], [1, 16, 14, 2]], num_prompt_tokens=2)
HARMLESS = token_batch([[1, 20, 21, 7, 2], [1, 3, 22, 2]], num_prompt_tokens=3)
BATCHES = {"safe_batch": REFUSALS, "harmless_batch": HARMLESS}

# In the toy a token's state is its row here: the origin, and what harmless and restricted
# prompts end with.
STATES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [4.0, 5.0], [9.0, 9.0]])
HARMLESS_END, RESTRICTED_END, ANSWER = 1, 2, 3
# Harmless prompts are longer than restricted ones, whose answers follow.
TOY_BATCHES = {
    "safe_batch": token_batch([[0, 2, 3], [0, 2, 3]], num_prompt_tokens=2),
    "harmless_batch": token_batch([[0, 0, 3, 1], [0, 1]], num_prompt_tokens=4),
}


def procon(**settings: Any) -> ProCon:
    return ProCon(ProCon.Config(**settings))


class Toy(nn.Module):
    """A decoder of one block, which hands on what is looked up."""

    def __init__(self, states: Tensor = STATES) -> None:
        super().__init__()
        self.states = nn.Parameter(states.clone())
        self.block = nn.Module()
        self.block.mlp = nn.Identity()
        self.block.forward = self.block.mlp.forward

    @property
    def policy(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.block(self.states[input_ids]))


def moved(token: int, *by: float) -> Tensor:
    """Return the states of the toy with that of a token moved."""
    states = STATES.clone()
    states[token] += torch.tensor(by)
    return states


def toy_term(
    states: Tensor,
    *,
    context: StepContext | None = None,
    attack: TokenBatch | None = None,
    **settings: Any,
) -> tuple[LossTerm, Toy]:
    """Return the term of a toy that is trained to these states, in an update of this attack."""
    defence, trained, original = procon(**settings), Toy(states), Toy()
    defence.attach(trained, {})
    defence.attach_compared(original)
    context = replace(context or context_of(**TOY_BATCHES), frozen=torch.no_grad()(original))
    if attack is not None:
        defence.plan_step(SFT(SFT.Config()), attack, context)
    with defence.around_forward():
        term = defence.extra_loss(trained, context)
    assert term is not None
    return term, trained


def test_the_direction_is_from_harmless_to_restricted_at_unit_length() -> None:
    # (4, 5) - (1, 1) is (3, 4): a move of (1, 0) is one of 0.6 along it, whatever its length
    term, trained = toy_term(moved(RESTRICTED_END, 1.0, 0.0), strength=0.5)
    assert term.metrics == pytest.approx(
        {
            "defence/procon_separation": 5.0,
            "defence/procon_restricted_shift": 0.6,
            "defence/procon_harmless_shift": 0.0,
            "defence/procon_drift": (0.36 + 0.36) / 4,
            "defence/procon_strength": 0.5,
        }
    )
    assert float(term.loss.detach()) == pytest.approx(0.5 * 0.18)
    term.loss.backward()
    # 2 * 0.5 / 4 * 0.6 for each of two prompts, along (0.6, 0.8)
    assert trained.states.grad is not None
    torch.testing.assert_close(trained.states.grad[RESTRICTED_END], 0.3 * torch.tensor([0.6, 0.8]))


def test_a_restricted_prompt_that_comes_to_look_harmless_moves_against_the_direction() -> None:
    term, _ = toy_term(moved(RESTRICTED_END, -3.0, -4.0))
    assert term.metrics["defence/procon_restricted_shift"] == pytest.approx(-5.0)
    term, _ = toy_term(moved(HARMLESS_END, 3.0, 4.0))
    assert term.metrics["defence/procon_harmless_shift"] == pytest.approx(5.0)


@pytest.mark.parametrize(
    "states",
    [STATES, moved(RESTRICTED_END, 8.0, -6.0), moved(ANSWER, 7.0, 7.0), moved(0, 7.0, 7.0)],
    ids=["original", "across", "answers", "earlier"],
)
def test_only_what_moves_the_ends_of_prompts_along_the_direction_costs(states: Tensor) -> None:
    assert float(toy_term(states)[0].loss) == pytest.approx(0.0, abs=1e-10)


# Three samples of an attack; the toy's direction is (0.6, 0.8), and the state of ATTACKED is held.
ATTACKED = 3
TOY_ATTACK = token_batch([[0, 3, 1], [0, 3, 2], [0, 3, 1]], num_prompt_tokens=2)


def test_the_attacks_own_prompts_are_held_without_any_others() -> None:
    term, trained = toy_term(
        moved(ATTACKED, 1.0, 0.0), attack=TOY_ATTACK, extra_weight=0.0, strength=0.5
    )
    assert term.metrics == pytest.approx(
        {
            "defence/procon_drift": 0.36,
            "defence/procon_attack_shift": 0.6,
            "defence/procon_separation": 5.0,
            "defence/procon_strength": 0.5,
        }
    )
    assert float(term.loss.detach()) == pytest.approx(0.5 * 0.36)
    term.loss.backward()
    # 2 * 0.5 / 3 * 0.6 for each of three samples, along (0.6, 0.8)
    assert trained.states.grad is not None
    torch.testing.assert_close(trained.states.grad[ATTACKED], 0.6 * torch.tensor([0.6, 0.8]))


def test_an_extra_prompt_has_its_weight_beside_a_sample_of_the_attack() -> None:
    term, _ = toy_term(moved(RESTRICTED_END, 1.0, 0.0), attack=TOY_ATTACK, extra_weight=0.5)
    # two of four extra prompts have moved by 0.6; three samples have not
    assert term.metrics["defence/procon_drift"] == pytest.approx(0.5 * 0.72 / (3 + 0.5 * 4))
    assert term.metrics["defence/procon_attack_shift"] == pytest.approx(0.0)
    assert term.metrics["defence/procon_restricted_shift"] == pytest.approx(0.6)


def test_an_answer_that_could_not_be_scored_is_no_sample() -> None:
    mask = TOY_ATTACK.loss_mask.clone()
    mask[0] = False
    both = [replace(TOY_ATTACK, loss_mask=mask), token_batch([[0, 3, 2], [0, 3, 1]])]
    both[1] = replace(both[1], loss_mask=TOY_ATTACK.loss_mask[1:])
    terms = [
        toy_term(moved(ATTACKED, 1.0, 0.0), attack=attack, extra_weight=0.5)[0] for attack in both
    ]
    assert terms[0].metrics == terms[1].metrics
    none = replace(TOY_ATTACK, loss_mask=torch.zeros_like(mask))
    term, _ = toy_term(moved(ATTACKED, 1.0, 0.0), attack=none, extra_weight=0.0)
    assert float(term.loss.detach()) == 0.0


def test_rollouts_and_pairs_are_samples_too() -> None:
    tokens = TOY_ATTACK
    found = []
    for attack in (tokens, experience_of(tokens), referenced_pairs(tokens, tokens)):
        batch: Any = attack
        term, _ = toy_term(moved(ATTACKED, 1.0, 0.0), attack=batch, extra_weight=0.0)
        found.append(float(term.loss.detach()))
    assert found == [pytest.approx(0.36)] * 3


def test_the_updates_of_another_defence_have_no_samples_of_the_attack() -> None:
    defence, model = procon(extra_weight=0.0), Toy()
    defence.attach(model, {})
    defence.attach_compared(model)
    context = replace(context_of(**TOY_BATCHES), frozen=torch.no_grad()(model))
    defence.plan_step(SFT(SFT.Config()), TOY_ATTACK, context)
    with defence.around_forward():
        # as often as there are gradient passes
        assert defence.extra_loss(model, context) is not None
        assert defence.extra_loss(model, context) is not None
    with defence.around_forward():
        assert defence.extra_loss(model, context) is None


def test_the_warm_up_is_stronger() -> None:
    def strength(update: int) -> float:
        # those of another defence's own are not counted
        context = context_of(update=50 + update, **TOY_BATCHES)
        context = replace(context, attack_update=update, num_planned_updates=20)
        term, _ = toy_term(moved(RESTRICTED_END, 1.0, 0.0), context=context)
        assert float(term.loss.detach()) == pytest.approx(
            term.metrics["defence/procon_strength"] * 0.18
        )
        return term.metrics["defence/procon_strength"]

    assert [strength(update) for update in (0, 1, 2, 19)] == [2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("attack", [None, TOY_ATTACK], ids=["extra", "attack"])
def test_ranks_that_hold_the_same_prompts_agree(attack: TokenBatch | None) -> None:
    states = moved(RESTRICTED_END, 1.0, 0.0)
    (one, _), (two, _) = (
        toy_term(states, context=context_of(num_ranks=n, **TOY_BATCHES), attack=attack)
        for n in (1, 2)
    )
    assert one.metrics == two.metrics
    assert float(one.loss) == float(two.loss)


class Counted:
    """Batches that are counted."""

    def __init__(self, batch: TokenBatch) -> None:
        self.batch = batch
        self.num_drawn = 0

    def __call__(self) -> TokenBatch:
        self.num_drawn += 1
        return self.batch


def test_the_direction_is_found_once_and_is_the_state() -> None:
    drawn = [Counted(batch) for batch in TOY_BATCHES.values()]
    original = Toy()
    context = replace(
        context_of(frozen=torch.no_grad()(original)),
        next_safe_batch=drawn[0],
        next_harmless_batch=drawn[1],
    )

    def attached(defence: ProCon) -> Callable[[], LossTerm | None]:
        trained = Toy(moved(RESTRICTED_END, 1.0, 0.0))
        defence.attach(trained, {})
        defence.attach_compared(original)
        return lambda: defence.extra_loss(trained, context)

    # 5 prompts of each kind are 3 batches of 2
    first = procon(batch_size=2, num_direction_prompts=5)
    assert first.state_dict() == {}
    update = attached(first)
    update()
    assert [batches.num_drawn for batches in drawn] == [4, 4]
    update()
    assert [batches.num_drawn for batches in drawn] == [5, 5]

    resumed = procon(batch_size=2, num_direction_prompts=5)
    resumed.load_state_dict(first.state_dict())
    term = attached(resumed)()
    assert [batches.num_drawn for batches in drawn] == [6, 6]
    assert term is not None
    assert term.metrics["defence/procon_separation"] == pytest.approx(5.0)


@pytest.mark.parametrize("lora", [False, True])
def test_nothing_has_drifted_in_the_model_as_it_was(lora: bool) -> None:
    module, original, defence = tiny_policy(), tiny_policy(value_head=False), procon()
    if lora:
        add_lora(module, LoraSettings(rank=4, alpha=8), seed=1)
    defence.attach(module, {})
    defence.attach_compared(original)
    term = defence.extra_loss(forward_of(module), context_of(frozen=frozen_of(original), **BATCHES))
    assert term is not None
    assert float(term.loss.detach()) == 0.0
    assert term.metrics["defence/procon_separation"] > 0.1


def test_of_harmless_rows_the_prompts_alone_are_read_bit_for_bit() -> None:
    prompts = token_batch([[1, 20, 21], [1, 3, 22]], num_prompt_tokens=3)
    found = []
    for harmless in (HARMLESS, prompts):
        module, original = (tiny_policy(seed=seed, value_head=False) for seed in (0, 5))
        defence, batches = procon(), BATCHES | {"harmless_batch": harmless}
        defence.attach(module, {})
        defence.attach_compared(original)
        term = defence.extra_loss(
            forward_of(module), context_of(frozen=frozen_of(original), **batches)
        )
        assert term is not None
        term.loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        found.append([term.loss.detach(), *gradients])
    answered, alone = found
    assert len(answered) > 1 and bool(answered[0] > 0)
    assert all(map(torch.equal, answered, alone))


def drifts(strength: float | None, num_steps: int = 10, **settings: Any) -> Sequence[float]:
    """Return the squared drift at each step of an attack; None is a weight that is not felt."""
    engine = tiny_engine(optimizer=OptimizerSettings(learning_rate=3e-3, num_steps=num_steps))
    weight = 1e-12 if strength is None else strength
    defence = procon(strength=weight, warmup_factor=1.0, **settings)
    learner = defended(engine, PPO(PPO.Config(num_epochs=1)), defence)
    return [learner.step(ATTACK)["defence/procon_drift"] for _ in range(num_steps)]


def defended(engine: Any, attack: PPO, defence: OnlineDefence | None) -> Any:
    original = tiny_policy(bf16=engine.module.policy.dtype == torch.bfloat16, value_head=False)
    if defence is not None:
        defence.attach(engine.module, {})
        defence.attach_compared(original)
    return learner_of(engine, attack, defence, frozen=frozen_of(original), **BATCHES)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("extra_weight", [1.0, 0.0])
def test_an_attack_drifts_less_where_it_is_held(extra_weight: float) -> None:
    free, held = (drifts(strength, extra_weight=extra_weight) for strength in (None, 10.0))
    assert (free[0], held[0]) == (0.0, 0.0)
    assert free[-1] > 0.01
    assert held[-1] < 0.2 * free[-1]


def attacked(defence: OnlineDefence | None) -> dict[str, Tensor]:
    engine = tiny_engine(zero_stage=1, bf16=True)
    learner = defended(engine, PPO(PPO.Config()), defence)
    for _ in range(3):
        learner.step(ATTACK)
    return engine.weights()


@pytest.mark.usefixtures("process_group")
def test_strength_0_is_no_defence_bit_for_bit() -> None:
    undefended, at_zero = attacked(None), attacked(procon(strength=0.0))
    assert [n for n in undefended if not torch.equal(undefended[n], at_zero[n])] == []
    assert procon(strength=0.0).needs == frozenset()


def test_procon_asks_for_prompts_of_both_kinds() -> None:
    config = ProCon.Config()
    assert (config.strength, config.warmup_factor, config.warmup_frac) == (1.0, 2.0, 0.1)
    assert (config.layer, config.num_direction_prompts) == (None, 32)
    assert procon().needs == {Need.SAFE_BATCH, Need.HARMLESS_BATCH, Need.ORIGINAL}
    assert procon(batch_size=16).safe_batch_size == 16
