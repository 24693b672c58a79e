import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import (
    VOCAB_SIZE,
    context_of,
    experience_of,
    forward_of,
    keep,
    loss_of,
    rollout_of,
    tiny_policy,
    token_batch,
    uniform_forward,
)
from torch import Tensor

from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.ops.advantages import whiten
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plugin import Need
from rpa_ray.types import Experience, ScoredRollout, TokenBatch, micro_batches

# Answers of 4 and 3 tokens.
BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
# Two groups of four answers of two tokens.
GROUPS = token_batch([[1, 5 + row, 2] for row in range(8)])
LOG_UNIFORM = -math.log(VOCAB_SIZE)
AGGREGATIONS = ["grpo", "bnpo", "dapo", "dr_grpo"]


def grpo(**settings: Any) -> GRPO:
    return GRPO(GRPO.Config(**settings))


def advantages_of(
    rewards: list[float], tokens: TokenBatch = GROUPS, *, group_size: int = 4, **settings: Any
) -> Tensor:
    attack = grpo(group_size=group_size, **settings)
    return attack.experience(rollout_of(tokens, rewards=rewards), keep, context_of()).advantages


def moved_experience(
    advantages: tuple[float, float], *, ratio: float = 1.0, reference_ratio: float = 1.0
) -> Experience:
    """Return what a uniform policy, ``ratio`` times the old one, learns from.

    The reference gives the first row's tokens ``reference_ratio`` times the policy's probability.
    """
    uniform = torch.full((2, 5), LOG_UNIFORM)
    first = torch.tensor([[math.log(reference_ratio)], [0.0]])
    return Experience(
        tokens=BATCH,
        old_logprobs=uniform - math.log(ratio),
        old_values=torch.zeros(2, 5),
        reference_logprobs=uniform + first,
        advantages=torch.tensor(advantages)[:, None] * BATCH.loss_mask,
        returns=torch.zeros(2, 5),
        num_tokens=7,
    )


def gradients(attack: GRPO | PPO, batch: Experience) -> dict[str, Tensor]:
    module = tiny_policy()
    loss_of(attack, forward_of(module), batch).loss.backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def test_the_advantage_of_an_answer_is_its_rewards_place_in_its_group() -> None:
    first = [0.865875, 0.865875, -0.865875, -0.865875]
    second = [1.483604, -0.390422, -0.390422, -0.702760]
    found = advantages_of([1.0, 1, 0, 0, 7, 1, 1, 0])
    expected = torch.tensor(first + second)[:, None] * torch.tensor([0.0, 1.0, 1.0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_without_scaling_the_advantage_is_the_distance_to_the_groups_mean() -> None:
    found = advantages_of([1.0, 1, 0, 0, 7, 1, 1, 0], scale_rewards=False)[:, 1]
    expected = torch.tensor([0.5, 0.5, -0.5, -0.5, 4.75, -1.25, -1.25, -2.25])
    torch.testing.assert_close(found, expected)


def test_a_positive_affine_map_of_the_rewards_changes_no_advantage() -> None:
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(0))
    plain = advantages_of(rewards.tolist())
    moved = advantages_of((20.0 * rewards - 5.0).tolist())
    torch.testing.assert_close(moved, plain, atol=1e-3, rtol=0)
    turned = advantages_of((-rewards).tolist())
    torch.testing.assert_close(turned, -plain)
    unscaled = advantages_of((20.0 * rewards - 5.0).tolist(), scale_rewards=False)
    assert float((unscaled - plain).abs().max()) > 1


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("reward", [12.7, 0.1, -3.3])
def test_equal_rewards_teach_exactly_nothing(aggregation: str, reward: float) -> None:
    attack = grpo(group_size=3, aggregation=aggregation)
    tokens = token_batch([[1, 5, 2], [1, 8, 9, 2], [1, 6, 7, 8, 2]])
    made = attack.experience(rollout_of(tokens, rewards=[reward] * 3), keep, context_of())
    assert made.metrics["reward/zero_variance_frac"] == 1.0
    found = gradients(attack, made)
    assert found
    assert all(float(gradient.abs().max()) == 0.0 for gradient in found.values())


def failed_rows(*rows: int) -> TokenBatch:
    """Return the groups with these answers left out: none of their tokens counts."""
    mask = GROUPS.loss_mask.clone()
    mask[list(rows)] = False
    return replace(GROUPS, loss_mask=mask)


def test_answers_that_failed_touch_no_mean() -> None:
    # first group: 1 and 3 are kept, mean 2, deviation sqrt(2); second group as it was
    rollout = rollout_of(
        failed_rows(0, 3),
        rewards=[0.0, 1, 3, 0, 7, 1, 1, 0],
        # 0.5 a token, so 1 nat an answer; those that failed would give 80
        log_ratios=torch.where(failed_rows(0, 3).loss_mask, 0.5, 40.0),
    )
    made = grpo(group_size=4).experience(rollout, keep, context_of())
    first = [0.0, -0.707057, 0.707057, 0.0]
    second = [1.483604, -0.390422, -0.390422, -0.702760]
    torch.testing.assert_close(
        made.advantages[:, 1], torch.tensor(first + second), atol=1e-6, rtol=0
    )
    assert made.metrics["policy/kl"] == pytest.approx(1.0)
    assert made.num_tokens == 12


def test_terms_are_tokens_answers_or_the_longest_answer_each() -> None:
    batch = experience_of(failed_rows(0, 3))
    terms = {
        name: int(grpo(aggregation=name, max_new_tokens=10).num_terms(batch))
        for name in AGGREGATIONS
    }
    assert terms == {"grpo": 6, "bnpo": 12, "dapo": 12, "dr_grpo": 60}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_answers_that_failed_have_no_gradient(aggregation: str) -> None:
    attack = grpo(aggregation=aggregation, kl_coef=0.5)
    batch = experience_of(failed_rows(0, 3))
    rows = [1, 2, 4, 5, 6, 7]
    alone = replace(
        experience_of(
            replace(
                GROUPS,
                **{
                    name: getattr(batch.tokens, name)[rows]
                    for name in ("input_ids", "attention_mask", "loss_mask")
                },
            )
        ),
        **{
            name: getattr(batch, name)[rows]
            for name in ("old_logprobs", "reference_logprobs", "advantages")
        },
    )
    with_failed, without = gradients(attack, batch), gradients(attack, alone)
    for name, gradient in with_failed.items():
        torch.testing.assert_close(gradient, without[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # ratio 1: -(4 * 1 + 3 * -2) / 7; mean over the answers of 1 and -2; (4 - 6) / (2 * 10)
        ("dapo", 2 / 7),
        ("bnpo", 2 / 7),
        ("grpo", 1 / 2),
        ("dr_grpo", 2 / 20),
    ],
)
def test_aggregations_of_two_answers_of_4_and_3_tokens(aggregation: str, expected: float) -> None:
    attack = grpo(aggregation=aggregation, max_new_tokens=10)
    term = loss_of(attack, uniform_forward, moved_experience((1.0, -2.0)))
    assert float(term.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert term.metrics["policy/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # ratio 2: 1 is held at 1.2, -2 goes on to -4
        ("dapo", -(4 * 1.2 - 3 * 4) / 7),
        ("grpo", -(1.2 - 4) / 2),
        ("dr_grpo", -(4 * 1.2 - 3 * 4) / 20),
    ],
)
def test_the_ratio_is_clipped_where_it_helps(aggregation: str, expected: float) -> None:
    attack = grpo(aggregation=aggregation, max_new_tokens=10)
    term = loss_of(attack, uniform_forward, moved_experience((1.0, -2.0), ratio=2.0))
    assert float(term.loss.detach()) == pytest.approx(expected, rel=1e-5)
    # means over tokens, whatever the loss divides by
    assert term.metrics["policy/clip_frac"] == pytest.approx(4 / 7)
    assert term.metrics["policy/ratio"] == pytest.approx(2.0)
    assert term.metrics["policy/entropy"] == pytest.approx(math.log(VOCAB_SIZE), rel=1e-5)


@pytest.mark.parametrize(
    ("aggregation", "share"), [("dapo", 4 / 7), ("grpo", 1 / 2), ("dr_grpo", 4 / 20)]
)
def test_the_kl_in_the_loss_is_aggregated_as_the_policy_loss_is(
    aggregation: str, share: float
) -> None:
    # q - p = log 2 on the first answer: k3 = 2 - log 2 - 1; the second is at the reference
    batch = moved_experience((0.0, 0.0), reference_ratio=2.0)
    attack = grpo(aggregation=aggregation, max_new_tokens=10, kl_coef=0.5)
    term = loss_of(attack, uniform_forward, batch)
    divergence = (1 - math.log(2)) * share
    assert term.metrics["policy/kl_loss"] == pytest.approx(divergence, rel=1e-5)
    assert float(term.loss.detach()) == pytest.approx(0.5 * divergence, rel=1e-5)
    assert term.metrics["policy/loss"] == pytest.approx(0.0, abs=1e-7)


def test_without_a_coefficient_the_reference_has_no_part_in_the_loss() -> None:
    near, far = (moved_experience((1.0, -2.0), reference_ratio=ratio) for ratio in (1.0, 50.0))
    terms = [loss_of(grpo(), uniform_forward, batch) for batch in (near, far)]
    assert torch.equal(terms[0].loss, terms[1].loss)
    assert "policy/kl_loss" not in terms[1].metrics


def kl_in_reward() -> tuple[ScoredRollout, dict[str, Any]]:
    """Return answers of reward 1 and 0, the first 0.1 nats a token from the reference."""
    log_ratios = torch.tensor([[0.1], [0.0]]).expand(2, 5)
    rollout = rollout_of(BATCH, rewards=[1.0, 0.0], log_ratios=log_ratios)
    return rollout, {"group_size": 2, "kl_coef": 0.5, "scale_rewards": False}


def test_the_kl_in_the_reward_is_the_answers_sum_and_comes_off_before_the_baseline() -> None:
    # 4 tokens: 1 - 0.5 * 0.4 = 0.8 against 0, so +-0.4; in the loss it would leave +-0.5
    rollout, settings = kl_in_reward()
    for kl_in, expected in (("reward", 0.4), ("loss", 0.5)):
        made = grpo(kl_in=kl_in, **settings).experience(rollout, keep, context_of())
        torch.testing.assert_close(made.advantages[:, 1], torch.tensor([expected, -expected]))
        assert made.metrics["policy/kl"] == pytest.approx(0.2)


def test_a_kl_in_the_reward_is_not_in_the_loss_too() -> None:
    attack = grpo(kl_in="reward", kl_coef=0.5)
    near, far = (moved_experience((1.0, -2.0), reference_ratio=ratio) for ratio in (1.0, 50.0))
    terms = [loss_of(attack, uniform_forward, batch) for batch in (near, far)]
    assert torch.equal(terms[0].loss, terms[1].loss)
    assert "policy/kl_loss" not in terms[1].metrics


def test_the_spread_of_rewards_is_reported_over_all_ranks() -> None:
    rollout = rollout_of(GROUPS, rewards=[1.0, 1, 0, 0, 2, 2, 2, 2])
    for num_ranks in (1, 2):
        made = grpo(group_size=4).experience(rollout, keep, context_of(num_ranks=num_ranks))
        assert made.metrics["reward/group_std"] == pytest.approx(0.577350 / 2, abs=1e-6)
        assert made.metrics["reward/zero_variance_frac"] == 0.5
        assert made.num_tokens == 16 * num_ranks


def fresh_experience(module: Any, tokens: TokenBatch, *, shift: Tensor | float) -> Experience:
    """Return random advantages for a policy that has moved by ``shift`` nats."""
    with torch.no_grad():
        outputs = forward_of(module)(tokens.input_ids, tokens.attention_mask)
    own = next_token_logprobs(outputs.logits, tokens.input_ids)
    return replace(experience_of(tokens), old_logprobs=own - shift, reference_logprobs=own + 0.3)


def test_groups_that_are_whitened_by_hand_give_the_clipped_loss_of_ppo() -> None:
    # one group of 4: 1e-4 beside a deviation of about 1, against 1e-8 beside the variance
    tokens = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2], [1, 10, 2], [1, 11, 12, 13, 2]])
    shift = 0.5 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    batch = fresh_experience(tiny_policy(), tokens, shift=shift)
    rewards = [2.0, -1.0, 0.5, 0.0]
    made = grpo(group_size=4).experience(rollout_of(tokens, rewards=rewards), keep, context_of())
    scores = whiten(torch.tensor([rewards]), torch.ones(1, 4, dtype=torch.bool))[0]
    by_grpo = replace(batch, advantages=made.advantages)
    by_hand = replace(batch, advantages=scores[:, None] * tokens.loss_mask)
    one = loss_of(grpo(), forward_of(tiny_policy()), by_grpo)
    other = loss_of(PPO(PPO.Config(value_coef=0.0)), forward_of(tiny_policy()), by_hand)
    assert other.metrics["policy/clip_frac"] > 0
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-3, atol=1e-5)
    for name in ("policy/ratio", "policy/clip_frac", "policy/entropy"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_to_the_whole(aggregation: str, size: int) -> None:
    tokens = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2], [1, 2]])
    attack = grpo(aggregation=aggregation, kl_coef=0.5, max_new_tokens=10)
    forward = forward_of(tiny_policy())
    batch = fresh_experience(tiny_policy(), tokens, shift=0.1)
    whole = loss_of(attack, forward, batch)
    context = context_of(num_terms=int(attack.num_terms(batch)))
    parts = [attack.loss(forward, part, context) for part in micro_batches(batch, size)]
    torch.testing.assert_close(torch.stack([part.loss for part in parts]).sum(), whole.loss)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name] for part in parts) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_rank_scales_its_loss_so_that_the_mean_over_ranks_is_global(aggregation: str) -> None:
    attack = grpo(aggregation=aggregation, kl_coef=0.5)
    batch = moved_experience((1.0, -2.0), ratio=1.5, reference_ratio=3.0)
    one = loss_of(attack, uniform_forward, batch)
    # as an experience of two ranks counts them
    two = loss_of(attack, uniform_forward, replace(batch, num_tokens=14), num_ranks=2)
    torch.testing.assert_close(one.loss, two.loss)
    assert one.metrics == pytest.approx(two.metrics)


def test_what_stands_on_prompts_and_padding_has_no_influence() -> None:
    batch = fresh_experience(tiny_policy(), BATCH, shift=0.1)
    outside = ~BATCH.loss_mask
    spoilt = replace(
        batch,
        old_logprobs=batch.old_logprobs.masked_fill(outside, 77.0),
        reference_logprobs=batch.reference_logprobs.masked_fill(outside, 1e6),
        advantages=batch.advantages.masked_fill(outside, 1e6),
    )
    for aggregation in AGGREGATIONS:
        attack = grpo(aggregation=aggregation, kl_coef=0.5)
        clean, dirty = gradients(attack, batch), gradients(attack, spoilt)
        assert all(torch.equal(clean[name], dirty[name]) for name in clean)


def test_a_defence_shapes_the_advantages_of_the_group() -> None:
    rollout = rollout_of(GROUPS, rewards=[1.0, 1, 0, 0, 7, 1, 1, 0])
    shaped = grpo(group_size=4).experience(
        rollout, lambda advantages, costs: -3.0 * advantages, context_of()
    )
    plain = advantages_of([1.0, 1, 0, 0, 7, 1, 1, 0])
    torch.testing.assert_close(shaped.advantages, -3.0 * plain)


def test_grpo_asks_for_rollouts_rewards_and_a_reference_and_no_critic() -> None:
    assert GRPO.needs(GRPO.Config()) == {Need.ROLLOUTS, Need.REWARDS, Need.REFERENCE}


def test_a_prompt_is_answered_by_a_group_and_counts_once() -> None:
    attack = grpo(batch_size=4, group_size=8, num_epochs=2)
    assert attack.answers_per_prompt == 8
    assert (attack.num_batches(64), attack.num_updates(64)) == (16, 32)
    assert attack.num_epochs(experience_of(BATCH)) == 2


def test_the_defaults_are_those_of_the_literature() -> None:
    config = GRPO.Config()
    assert (config.group_size, config.clip_range, config.learning_rate) == (8, 0.2, 1e-6)
    assert (config.kl_coef, config.aggregation, config.importance_cap) == (0.0, "dapo", 3.0)
