"""FRPO's rewards by hand, its loss beside GRPO's, and what its settings ask for."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checked import refusal
from fakes import context_of, forward_of, rollout_of, tiny_policy, token_batch
from torch import Tensor

from rpa_ray.defences.offline.frpo import FRPO
from rpa_ray.jobs.sampled_hardening import grpo_of
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import Need, Objective, SampledAnswer
from rpa_ray.types import Experience, TokenBatch, micro_batches

RESTRICTED = SampledAnswer(
    is_restricted=True, num_tokens=8, refuses=True, informs=False, p_harm=0.25, helpfulness=9.0
)
HARMLESS = replace(RESTRICTED, is_restricted=False, helpfulness=1.5)
# Three groups of two; the last answer is not scored.
SCORED = token_batch([[1, 5, 6, 7, 2], [1, 8, 2], [1, 9, 9, 2], [1, 4, 2], [1, 3, 5, 2], [1, 6, 2]])
TOKENS = replace(SCORED, loss_mask=SCORED.loss_mask & (torch.arange(6) < 5)[:, None])
REWARDS = [0.9, 0.1, 2.0, 3.0, 1.0, 0.0]


def frpo(**settings: Any) -> FRPO:
    return FRPO(FRPO.Config(**{"group_size": 2} | settings))


def experience(defence: FRPO, tokens: TokenBatch = TOKENS) -> Experience:
    """Return what the defence's GRPO makes of the tiny policy's answers."""
    with torch.no_grad():
        outputs = forward_of(tiny_policy())(tokens.input_ids, tokens.attention_mask)
    old = next_token_logprobs(outputs.logits, tokens.input_ids)
    rollout = replace(
        rollout_of(tokens, rewards=REWARDS),
        old_logprobs=old,
        rollout_logprobs=old - 0.1,  # what the importance weights would see
        reference_logprobs=old + 0.3 * torch.linspace(-1, 1, old.numel()).view_as(old),
    )
    hooks = defence.hooks()
    return grpo_of(defence).experience(rollout, hooks.shape_advantages, context_of())


def objective_of(defence: FRPO, batch: Experience) -> Objective[Any, Any]:
    objective, planned = defence.hooks().plan_step(grpo_of(defence), batch, context_of())
    assert planned is batch
    return objective


def gradients(objective: Objective[Any, Any], batch: Experience, size: int = 6) -> Tensor:
    """Return the gradient of a step in micro-batches of ``size`` rows, as one vector."""
    module = tiny_policy(value_head=False)
    context = context_of(num_terms=int(objective.num_terms(batch)))
    for part in micro_batches(batch, size):
        objective.loss(forward_of(module), part, context).loss.backward()
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in module.parameters()
        ]
    )


def test_an_answer_earns_its_safety_or_its_helpfulness_within_the_limit() -> None:
    answers = [RESTRICTED, HARMLESS, replace(HARMLESS, helpfulness=-9.0)]
    assert frpo().rewards(answers) == [0.75, 1.0, -1.0]
    assert frpo(helpfulness_limit=4.0).rewards(answers) == [0.75, 1.5, -4.0]
    assert math.isnan(frpo().rewards([replace(RESTRICTED, p_harm=math.nan)])[0])
    assert frpo().measures(answers) == {
        "defence/restricted_p_harm": [0.25],
        "defence/harmless_helpfulness": [1.5, -9.0],
        "defence/harmless_refusal_frac": [1.0, 1.0],
    }


@pytest.mark.parametrize("jackknife", [True, False])
def test_with_a_large_lam_it_goes_where_grpo_goes(jackknife: bool) -> None:
    defence = frpo(lam=1e3, jackknife=jackknife, kl_coef=0.0, group_size=3)
    batch = experience(defence, SCORED)
    settings = {"aggregation": "grpo", "scale_rewards": False, "kl_coef": 0.0}
    grpo = grpo_of(defence)
    grpo = type(grpo)(grpo.config.model_copy(update=settings))
    ours, theirs = gradients(objective_of(defence, batch), batch), gradients(grpo, batch)
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.999
    harsh = frpo(lam=0.2, kl_coef=0.0, group_size=3)
    turned = gradients(objective_of(harsh, batch), batch)
    assert float(torch.cosine_similarity(turned, theirs, dim=0)) < 0.99


def test_the_step_equals_the_formula_with_its_kl() -> None:
    defence = frpo(strength=0.5, lam=2.0, kl_coef=0.3)
    batch = experience(defence)
    module = tiny_policy(value_head=False)
    logits = forward_of(module)(TOKENS.input_ids, TOKENS.attention_mask).logits
    means, divergences = [], []
    for row in range(5):
        places = [t for t in range(5) if TOKENS.loss_mask[row, t]]
        logprobs = [logits[row, t - 1].log_softmax(-1)[TOKENS.input_ids[row, t]] for t in places]
        ratios = [
            (p - batch.old_logprobs[row, t]).exp() for p, t in zip(logprobs, places, strict=True)
        ]
        gaps = [batch.reference_logprobs[row, t] - p for p, t in zip(logprobs, places, strict=True)]
        means.append(torch.stack(ratios).mean())
        divergences.append(torch.stack([g.exp() - g - 1 for g in gaps]).mean())
    total = torch.zeros(())
    for first in (0, 2):  # of the third group one answer is scored
        mean = (REWARDS[first] + REWARDS[first + 1]) / 2
        x, y = (means[i] * math.exp((mean - REWARDS[i]) / 2.0) for i in (first, first + 1))
        value = 2 * ((x + y) / 2).log() - (x.log() + y.log()) / 2
        value = 2.0 * (value - (means[first] + means[first + 1]) / 2)
        total = total + 0.5 * value + 0.3 * (divergences[first] + divergences[first + 1]) / 2
    expected = torch.autograd.grad(total / 2, list(module.parameters()), allow_unused=True)
    flat = [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(expected, module.parameters(), strict=True)
    ]
    found = gradients(objective_of(defence, batch), batch)
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in flat]), atol=1e-5, rtol=1e-5)
    parts = gradients(objective_of(defence, batch), batch, size=2)
    torch.testing.assert_close(parts, found, atol=1e-6, rtol=1e-5)


def test_advantages_are_rewards_off_the_mean_of_their_group_and_nothing_else() -> None:
    batch = experience(frpo())
    expected = torch.tensor([0.4, -0.4, -0.5, 0.5, 0.0, 0.0])
    torch.testing.assert_close(batch.advantages, expected[:, None] * TOKENS.loss_mask)


def test_strength_0_has_a_gradient_of_nothing() -> None:
    defence = frpo(strength=0.0, kl_coef=0.3)
    batch = experience(defence)
    assert not gradients(objective_of(defence, batch), batch).any()
    assert gradients(objective_of(frpo(), batch), batch).any()


def test_groups_that_micro_batches_would_cut_are_refused(world_cache: Path) -> None:
    tree = {"attack": "sft", "defence": "frpo", "cluster": {"micro_batch_size": 12}}
    assert refusal(parse_tree(tree), world_cache) == (
        "cluster.micro_batch_size must be a multiple of defence.group_size (8) where frpo compares "
        "the answers to a prompt in one backward pass, got 12. Take 16."
    )


def test_groups_that_their_lengths_would_cut_are_refused(world_cache: Path) -> None:
    tree = {"attack": "sft", "defence": "frpo", "cluster": {"micro_batch_tokens": 4096}}
    assert refusal(parse_tree(tree), world_cache) == (
        "cluster.micro_batch_tokens must be left out where frpo compares the answers to a prompt "
        "in one backward pass, got 4096. Set it to null, and take cluster.micro_batch_size where a "
        "batch is too large."
    )


def test_it_asks_for_harmless_prompts_and_no_more_than_grpo() -> None:
    assert frpo().reads_harmless
    assert frpo().needs == {Need.ROLLOUTS, Need.REFERENCE}
    assert frpo().hooks().needs == frozenset()
