import math
from typing import Any

import pytest
import torch
from fakes import (
    context_of,
    experience_of,
    forward_of,
    keep,
    learner_of,
    loss_of,
    rollout_of,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor

from rpa_ray.attacks.ppo import PPO
from rpa_ray.learner.step import SamplingFailed
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plugin import Need
from rpa_ray.types import Experience, TokenBatch, micro_batches

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
# One row: a prompt token, three answer tokens, padding.
ROW = token_batch([[1, 5, 6, 2]], width=5)


def ppo(**settings: Any) -> PPO:
    return PPO(PPO.Config(**settings))


# Rewards of the tokens: -0.2 * log ratio = (-0.02, 0.01, 0), and the score 1 at the last of them.
KNOWN = rollout_of(
    ROW,
    rewards=[1.0],
    log_ratios=torch.tensor([[9.0, 0.1, -0.05, 0.0, 9.0]]),
    values=torch.tensor([[9.0, 0.1, 0.2, 0.3, 9.0]]),
)


def test_advantages_and_returns_of_a_worked_example() -> None:
    made = ppo(whiten_advantages=False).experience(KNOWN, keep, context_of())
    torch.testing.assert_close(made.advantages, torch.tensor([[0, 0.81625, 0.775, 0.7, 0]]))
    torch.testing.assert_close(made.returns, torch.tensor([[0, 0.91625, 0.975, 1.0, 0]]))
    assert torch.equal(made.old_logprobs, KNOWN.old_logprobs)
    assert torch.equal(made.old_values, KNOWN.values)


def test_whitened_advantages_of_a_worked_example() -> None:
    made = ppo().experience(KNOWN, keep, context_of())
    expected = torch.tensor([[0, 0.890797, 0.190885, -1.081683, 0]])
    torch.testing.assert_close(made.advantages, expected, rtol=0, atol=2e-6)
    # returns teach the critic and stay as they are
    torch.testing.assert_close(made.returns, torch.tensor([[0, 0.91625, 0.975, 1.0, 0]]))


def test_the_score_stands_at_the_last_token_of_each_row() -> None:
    made = ppo(kl_coef=0.0, kl_control="fixed", gae_lambda=0.0, whiten_advantages=False).experience(
        rollout_of(BATCH, rewards=[3.0, 5.0]), keep, context_of()
    )
    expected = torch.tensor([[0, 0, 0, 0, 3.0], [0, 0, 0, 5.0, 0]])
    assert torch.equal(made.advantages, expected)


def test_the_kl_that_is_reported_is_the_mean_over_sequences_of_their_sums() -> None:
    log_ratios = torch.full((2, 5), 0.5)  # 4 and 3 answer tokens
    rollout = rollout_of(BATCH, rewards=[0.0, 0.0], log_ratios=log_ratios)
    made = ppo().experience(rollout, keep, context_of())
    assert made.metrics["policy/kl"] == pytest.approx((2.0 + 1.5) / 2)


@pytest.mark.parametrize(("kl", "expected"), [(30.0, 0.200032), (6.0, 0.2), (3.0, 0.199968)])
def test_the_adaptive_controller_moves_after_a_batch_of_8(kl: float, expected: float) -> None:
    tokens = token_batch([[1, 5, 6, 2]] * 8)
    rollout = rollout_of(tokens, rewards=[0.0] * 8, log_ratios=torch.full((8, 4), kl / 3))
    attack = ppo()
    made = attack.experience(rollout, keep, context_of())
    assert made.metrics["policy/kl"] == pytest.approx(kl)
    # this batch was still penalised with the coefficient from before
    assert made.metrics["policy/kl_coef"] == 0.2
    assert attack.kl.value == pytest.approx(expected, rel=1e-6)
    again = attack.experience(rollout, keep, context_of())
    assert again.metrics["policy/kl_coef"] == pytest.approx(expected, rel=1e-6)


def test_the_controller_counts_the_rows_of_all_ranks() -> None:
    tokens = token_batch([[1, 5, 6, 2]] * 4)
    rollout = rollout_of(tokens, rewards=[0.0] * 4, log_ratios=torch.full((4, 4), 10.0))
    attack = ppo()
    attack.experience(rollout, keep, context_of(num_ranks=2))
    assert attack.kl.value == pytest.approx(0.200032, rel=1e-6)


def test_a_fixed_coefficient_stays() -> None:
    attack = ppo(kl_control="fixed", kl_coef=0.01)
    attack.experience(KNOWN, keep, context_of())
    assert attack.kl.value == 0.01


def test_a_resumed_controller_goes_on_where_it_was() -> None:
    attack = ppo()
    attack.experience(KNOWN, keep, context_of())
    resumed = ppo()
    resumed.load_state_dict(attack.state_dict())
    assert resumed.kl.value == attack.kl.value != 0.2
    attack.experience(KNOWN, keep, context_of())
    resumed.experience(KNOWN, keep, context_of())
    assert resumed.kl.value == attack.kl.value


def test_whitening_hides_scale_and_shift_of_the_reward() -> None:
    # Without a KL penalty and with lambda 1 each token's advantage is its row's score.
    def advantages(scores: list[float], *, whiten: bool = True) -> Tensor:
        attack = ppo(kl_coef=0.0, kl_control="fixed", gae_lambda=1.0, whiten_advantages=whiten)
        rollout = rollout_of(BATCH, rewards=scores)
        return attack.experience(rollout, keep, context_of()).advantages

    scores = [0.3, -1.2]
    moved = [5.0 * score + 3.0 for score in scores]
    torch.testing.assert_close(advantages(scores), advantages(moved), rtol=0, atol=1e-5)
    raw, raw_moved = advantages(scores, whiten=False), advantages(moved, whiten=False)
    assert float((raw - raw_moved).abs().max()) > 1


def test_whitening_takes_the_moments_of_all_ranks() -> None:
    # Another rank holds the same rows: the mean stays, the Bessel correction is over 14, not 7.
    rollout = rollout_of(BATCH, rewards=[1.0, -1.0])
    alone = ppo().experience(rollout, keep, context_of()).advantages
    together = ppo().experience(rollout, keep, context_of(num_ranks=2)).advantages
    torch.testing.assert_close(together, alone * math.sqrt((14 - 1) / 14 / ((7 - 1) / 7)))


def test_a_defence_shapes_the_advantages_before_they_are_whitened() -> None:
    def reverse(advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
        return -3.0 * advantages

    plain = ppo().experience(KNOWN, keep, context_of()).advantages
    shaped = ppo().experience(KNOWN, reverse, context_of()).advantages
    torch.testing.assert_close(shaped, -plain, rtol=0, atol=1e-5)


def fresh_experience(module: Any, tokens: TokenBatch = BATCH, *, shift: float = 0.0) -> Experience:
    """Return an experience whose old log-probabilities are the module's own, less ``shift``."""
    with torch.no_grad():
        outputs = forward_of(module)(tokens.input_ids, tokens.attention_mask)
    random = experience_of(tokens)
    return Experience(
        tokens=tokens,
        old_logprobs=next_token_logprobs(outputs.logits, tokens.input_ids) - shift,
        old_values=outputs.values,
        reference_logprobs=random.reference_logprobs,
        advantages=random.advantages,
        returns=random.returns,
        num_tokens=random.num_tokens,
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_the_first_epoch_has_ratio_exactly_1_and_clips_nothing(bf16: bool) -> None:
    module = tiny_policy(bf16=bf16)
    term = loss_of(ppo(), forward_of(module), fresh_experience(module))
    assert term.metrics["policy/ratio"] == 1.0
    assert term.metrics["policy/clip_frac"] == 0.0
    assert term.metrics["policy/ratio_guard"] == 0.0


def test_the_loss_at_the_old_policy_is_known() -> None:
    # ratio 1 and unmoved values: -mean A + 0.1 * mean (V - R)^2 / 2 over the 7 answer tokens
    module = tiny_policy()
    batch = fresh_experience(module)
    term = loss_of(ppo(), forward_of(module), batch)
    kept = BATCH.loss_mask
    policy = -batch.advantages[kept].mean()
    value = 0.5 * (batch.old_values - batch.returns)[kept].square().mean()
    torch.testing.assert_close(term.loss.detach(), policy + 0.1 * value)
    assert term.metrics["policy/loss"] == pytest.approx(float(policy), rel=1e-5)
    assert term.metrics["policy/value_loss"] == pytest.approx(float(value), rel=1e-5)


def test_the_entropy_is_that_of_the_answers_distributions() -> None:
    def uniform(input_ids: Tensor, attention_mask: Tensor) -> Any:
        outputs = forward_of(tiny_policy())(input_ids, attention_mask)
        return type(outputs)(logits=torch.zeros(2, 5, 16), values=outputs.values)

    term = loss_of(ppo(), uniform, experience_of(BATCH))
    assert term.metrics["policy/entropy"] == pytest.approx(math.log(16), rel=1e-6)


def gradients(attack: PPO, batch: Experience) -> dict[str, Tensor]:
    module = tiny_policy()
    loss_of(attack, forward_of(module), batch).loss.backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def test_a_value_coefficient_of_0_teaches_the_critic_nothing() -> None:
    batch = fresh_experience(tiny_policy())
    none = gradients(ppo(value_coef=0.0), batch)
    some = gradients(ppo(), batch)
    assert float(none["value_head.weight"].norm()) == 0
    assert float(some["value_head.weight"].norm()) > 0


def test_a_mean_ratio_above_10_multiplies_the_whole_loss_by_zero() -> None:
    # every ratio is e^2.4 = 11.02
    batch = fresh_experience(tiny_policy(), shift=2.4)
    module = tiny_policy()
    term = loss_of(ppo(), forward_of(module), batch)
    assert term.metrics["policy/ratio_guard"] == 1.0
    assert term.metrics["policy/ratio"] == pytest.approx(math.exp(2.4), rel=1e-4)
    assert float(term.loss.detach()) == 0
    grads = gradients(ppo(), batch)
    assert all(float(gradient.abs().sum()) == 0 for gradient in grads.values())


@pytest.mark.usefixtures("process_group")
def test_a_ratio_that_overflows_ends_the_run_only_where_trl_is_followed_exactly() -> None:
    batch = fresh_experience(tiny_policy(), shift=100.0)
    finite = loss_of(ppo(), forward_of(tiny_policy()), batch).loss
    assert float(finite.detach()) == 0
    exact = loss_of(ppo(trl_exact=True), forward_of(tiny_policy()), batch).loss
    assert exact.isnan().item()
    metrics = learner_of(tiny_engine(), ppo()).step(batch)
    assert metrics["optim/skipped"] == 0.0
    # at the first update, where others have three in a row
    with pytest.raises(SamplingFailed, match=r"^the loss was not finite$"):
        learner_of(tiny_engine(), ppo(trl_exact=True)).step(batch)


def test_the_guard_reports_the_share_of_tokens_that_it_took_away() -> None:
    # 4 of the step's 7 tokens are in this micro-batch
    first, second = micro_batches(fresh_experience(tiny_policy(), shift=2.4), 1)
    context = context_of(num_terms=7)
    parts = [ppo().loss(forward_of(tiny_policy()), part, context) for part in (first, second)]
    shares = [part.metrics["policy/ratio_guard"] for part in parts]
    assert shares == pytest.approx([4 / 7, 3 / 7])


def test_a_mean_ratio_below_10_does_not() -> None:
    batch = fresh_experience(tiny_policy(), shift=2.2)  # e^2.2 = 9.03
    term = loss_of(ppo(), forward_of(tiny_policy()), batch)
    assert term.metrics["policy/ratio_guard"] == 0.0
    assert float(term.loss.detach()) != 0


def test_what_stands_on_prompts_and_padding_has_no_influence() -> None:
    batch = fresh_experience(tiny_policy())
    outside = ~BATCH.loss_mask
    spoilt = Experience(
        tokens=batch.tokens,
        old_logprobs=batch.old_logprobs.masked_fill(outside, 77.0),
        old_values=batch.old_values.masked_fill(outside, -50.0),
        reference_logprobs=batch.reference_logprobs.masked_fill(outside, 33.0),
        advantages=batch.advantages.masked_fill(outside, 1e6),
        returns=batch.returns.masked_fill(outside, 1e6),
        num_tokens=batch.num_tokens,
    )
    clean, dirty = (gradients(ppo(), b) for b in (batch, spoilt))
    for name in clean:
        assert torch.equal(clean[name], dirty[name])


def test_a_rank_scales_its_loss_so_that_the_mean_over_ranks_is_global() -> None:
    # Two ranks with the same rows: each loss, and so their mean, is that of one rank.
    batch = fresh_experience(tiny_policy())
    module = tiny_policy()
    one = loss_of(ppo(), forward_of(module), batch)
    two = loss_of(ppo(), forward_of(module), batch, num_ranks=2)
    torch.testing.assert_close(one.loss, two.loss)


def test_1000_samples_are_125_batches_of_4_updates() -> None:
    attack = ppo(batch_size=8)
    assert attack.num_batches(1000) == 125
    assert attack.num_epochs(experience_of(BATCH)) == 4
    assert attack.num_updates(1000) == 500


def test_ppo_asks_for_rollouts_rewards_values_and_a_reference() -> None:
    wanted = {Need.ROLLOUTS, Need.REWARDS, Need.VALUES, Need.REFERENCE}
    assert PPO.needs(PPO.Config()) == wanted
