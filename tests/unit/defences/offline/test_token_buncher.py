"""TokenBuncher's reward by hand, its noiser's steps, and what its settings ask for."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    VOCAB_SIZE,
    context_of,
    experience_of,
    forward_of,
    rollout_of,
    tiny_policy,
    token_batch,
    uniform_forward,
)
from torch import Tensor

from rpa_ray.defences.offline.token_buncher import TokenBuncher
from rpa_ray.jobs.sampled_hardening import grpo_of
from rpa_ray.ops.logprobs import entropy
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import Need, Objective
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.types import Experience, ScoredRollout, micro_batches

# Answers of 4, 2, 3 and 2 tokens; the second is worse than its group's mean.
TOKENS = token_batch([[1, 5, 6, 7, 2], [1, 8, 2], [1, 9, 9, 2], [1, 4, 2]])
BATCH = replace(
    experience_of(TOKENS),
    advantages=torch.tensor([1.0, -1.0, 0.0, 0.0])[:, None] * TOKENS.loss_mask,
)
LEARNED = 4 + 3 + 2


def buncher(**settings: Any) -> TokenBuncher:
    return TokenBuncher(TokenBuncher.Config(**{"group_size": 2, "warmup_steps": 3} | settings))


def rewarded(entropies: Tensor, **settings: Any) -> tuple[ScoredRollout, dict[str, float]]:
    rollout = rollout_of(TOKENS, rewards=[0.0] * 4, entropies=entropies)
    return buncher(**settings).hooks().plan_rollout(rollout, context_of())


def noiser(**settings: Any) -> Objective[Any, Any]:
    """Return what the first even step after the warm-up learns by."""
    defence = buncher(**settings)
    context = replace(context_of(), attack_update=3)
    objective, batch = defence.hooks().plan_step(grpo_of(defence), BATCH, context)
    assert batch is BATCH
    return objective


def loss(
    objective: Objective[Any, Any], forward: Any, batch: Experience = BATCH, update: int = 3
) -> Tensor:
    num_terms = int(objective.num_terms(BATCH))
    context = replace(context_of(num_terms=num_terms), update=update)
    return objective.loss(forward, batch, context).loss


def test_an_answer_earns_minus_the_mean_entropy_of_its_tokens() -> None:
    entropies = torch.zeros(4, 5)
    entropies[0] = torch.tensor([9.0, 0.0, 2.0, 1.0, 1.0])
    entropies[1] = torch.tensor([9.0, 4.0, 6.0, 70.0, 70.0])
    found, metrics = rewarded(entropies)
    assert found.rewards.tolist() == [-1.0, -5.0, 0.0, 0.0]
    assert metrics == {"reward/mean": -1.5, "defence/answer_entropy": 1.5}
    assert rewarded(entropies, strength=2.0)[0].rewards.tolist() == [-2.0, -10.0, 0.0, 0.0]
    # GRPO adds no bonus of its own to what is left.
    assert found.entropies is None


def test_uniform_tokens_earn_minus_log_v_and_certain_ones_nothing() -> None:
    certain = 1e4 * torch.nn.functional.one_hot(TOKENS.input_ids, VOCAB_SIZE).float()
    for logits, expected in [
        (torch.zeros(4, 5, VOCAB_SIZE), -math.log(VOCAB_SIZE)),
        (certain, 0.0),
    ]:
        found, _ = rewarded(entropy(logits))
        torch.testing.assert_close(found.rewards, torch.full((4,), expected))


def test_after_the_warm_up_every_even_step_is_the_noisers() -> None:
    defence = buncher()
    hooks, grpo = defence.hooks(), grpo_of(defence)
    steps = [
        hooks.plan_step(grpo, BATCH, replace(context_of(), attack_update=update))[0] is not grpo
        for update in range(8)
    ]
    # steps 1 to 8, of which 1 to 3 warm up
    assert steps == [False, False, False, True, False, True, False, True]


def test_the_noiser_learns_answers_that_are_no_worse_than_the_mean() -> None:
    objective = noiser(eps=0.0)
    assert int(objective.num_terms(BATCH)) == LEARNED
    module = tiny_policy(value_head=False)
    logits = forward_of(module)(TOKENS.input_ids, TOKENS.attention_mask).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, TOKENS.input_ids[:, 1:, None]).squeeze(2)
    mask = TOKENS.loss_mask[:, 1:] & torch.tensor([[True], [False], [True], [True]])
    expected = -(logprobs * mask).sum() / LEARNED
    torch.testing.assert_close(loss(objective, forward_of(module)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("weight", "share"), [("eps", 0.1), ("eps2", 0.01)])
def test_the_noise_weighs_eps_or_its_square(weight: str, share: float) -> None:
    found = loss(noiser(noiser_weight=weight), uniform_forward)
    assert float(found.detach()) == pytest.approx((0.9 + share) * math.log(VOCAB_SIZE), abs=1e-5)


def gradients(objective: Objective[Any, Any], size: int, *, update: int = 3) -> Tensor:
    module = tiny_policy(value_head=False)
    for part in micro_batches(BATCH, size):
        loss(objective, forward_of(module), part, update).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_parts_of_a_step_add_up_and_each_update_has_noise_of_its_own() -> None:
    objective = noiser(noiser_weight="eps")
    whole = gradients(objective, 4)
    torch.testing.assert_close(gradients(objective, 1), whole, atol=1e-6, rtol=1e-5)
    assert torch.equal(gradients(objective, 4), whole)
    other = gradients(objective, 4, update=5)
    assert float((other - whole).abs().max()) > 1e-4


def test_strength_0_asks_for_nothing_and_learns_nothing() -> None:
    none = buncher(strength=0.0)
    hooks, grpo = none.hooks(), grpo_of(none)
    assert hooks.needs == frozenset()
    assert buncher().hooks().needs == {Need.ENTROPIES}
    assert grpo.config.kl_coef == 0.0
    assert grpo_of(buncher()).config.kl_coef == 0.001
    rollout = rollout_of(TOKENS, rewards=none.rewards([None] * 4))  # type: ignore[list-item]
    planned, metrics = hooks.plan_rollout(rollout, context_of())
    assert planned is rollout
    assert metrics == {}
    made = grpo.experience(planned, hooks.shape_advantages, context_of())
    assert not made.advantages.any()
    context = replace(context_of(), attack_update=3)
    assert hooks.plan_step(grpo, made, context)[0] is grpo


def test_it_asks_restricted_prompts_alone_and_no_scorer_of_helpfulness(world_cache: Path) -> None:
    named = partial(CellInputs, cache=world_cache)
    found = {}
    for name in ("token_buncher", "frpo"):
        policy = named(parse_tree({"attack": "sft", "defence": name})).models.policy
        assert isinstance(policy, ModelRecipe)
        found[name] = sorted(policy.scored_by), "harmless" in policy.rows.settings
    assert found["token_buncher"] == (["judge"], False)
    assert found["frpo"] == (["helpfulness", "judge"], True)
    assert TokenBuncher.Config(batch_size=3).batch_size == 3
