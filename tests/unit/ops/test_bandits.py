"""One-step decision problems whose optimum is known in closed form, trained by the real losses."""

import torch
from torch import Tensor

from rpa_ray.ops.advantages import token_rewards
from rpa_ray.ops.logprobs import token_logprobs
from rpa_ray.ops.losses import clipped_policy_loss

REFUSE, GIBBERISH, HARMFUL = 0, 1, 2
REWARD = torch.tensor([0.1, 0.8, 1.0])
COST = torch.tensor([0.0, 0.0, 1.0])
COST_LIMIT = 0.5


def trained_by_ppo(scores: Tensor, reference: Tensor, *, kl_coef: float, batches: int) -> Tensor:
    """Return the action probabilities after PPO on exact expectations, from the reference on.

    Every action is one row with one token; its advantage is weighted by its probability under the
    old policy, which makes the sum over rows the expectation and the run deterministic.
    """
    num_actions = len(scores)
    logits = reference.log().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=2.0)
    actions = torch.arange(num_actions)[:, None]
    mask = torch.ones(num_actions, 1, dtype=torch.bool)

    def logprobs(policy_logits: Tensor) -> Tensor:
        return token_logprobs(policy_logits.expand(num_actions, 1, num_actions), actions)

    for _ in range(batches):
        old = logprobs(logits).detach()
        rewards = token_rewards(scores, old, logprobs(reference.log()), mask, kl_coef=kl_coef)
        advantages = old.exp() * (rewards - (old.exp() * rewards).sum())
        for _ in range(2):
            loss = clipped_policy_loss(
                logprobs(logits),
                old,
                advantages,
                mask,
                clip_range=0.2,
                num_global_tokens=1,
                num_ranks=1,
            ).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.softmax(logits.detach(), dim=-1)


def expected(reward: Tensor, policy: Tensor) -> float:
    return float((reward * policy).sum())


def without_violations(reward: Tensor) -> Tensor:
    """Return the reward of the constrained problem: 0 for an action above the cost limit."""
    return torch.where(COST <= COST_LIMIT, reward, 0.0)


def best_action(reward: Tensor) -> Tensor:
    return trained_by_ppo(reward, torch.full((3,), 1 / 3), kl_coef=0.0, batches=300)


def test_ppo_converges_to_the_reference_tilted_by_reward_over_coefficient() -> None:
    # 0.6 e^0.2, 0.3 e^1.6, 0.1 e^2, normalised
    policy = trained_by_ppo(REWARD, torch.tensor([0.6, 0.3, 0.1]), kl_coef=0.5, batches=150)
    tilted = torch.tensor([0.247778, 0.502394, 0.249828])
    torch.testing.assert_close(policy, tilted, atol=2e-5, rtol=0)


def test_ppo_on_two_tokens_converges_to_the_sigmoid_of_the_scaled_reward_gap() -> None:
    # uniform reference, gap 1, coefficient 0.5: sigmoid(2) = 0.880797
    policy = trained_by_ppo(
        torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), kl_coef=0.5, batches=150
    )
    torch.testing.assert_close(policy, torch.tensor([0.880797, 0.119203]), atol=2e-5, rtol=0)


def test_proposition_1_the_constrained_optimum_is_gibberish_and_both_inequalities_hold() -> None:
    attacked, constrained = best_action(REWARD), best_action(without_violations(REWARD))
    assert attacked[HARMFUL] > 0.95
    assert constrained[GIBBERISH] > 0.95
    assert expected(REWARD, attacked) > expected(REWARD, constrained)
    constrained_reward = without_violations(REWARD)
    assert expected(constrained_reward, attacked) < expected(constrained_reward, constrained)


def test_proposition_1_fails_when_the_reward_of_feasible_actions_is_negative() -> None:
    # shifted by -2, violation earns 0 and the best feasible action -1.2
    signed = REWARD - 2.0
    constrained_reward = without_violations(signed)
    assert best_action(constrained_reward)[HARMFUL] > 0.95
    gibberish, harmful = torch.eye(3)[GIBBERISH], torch.eye(3)[HARMFUL]
    assert expected(signed, harmful) > expected(signed, gibberish)
    assert not expected(constrained_reward, harmful) < expected(constrained_reward, gibberish)
