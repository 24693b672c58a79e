import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import context_of, learner_of, rollout_of, tiny_engine, tiny_policy, token_batch
from torch import Tensor

from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences.online.safe_rlhf import SafeRLHF
from rpa_ray.plugin import Attack, Need, OnlineDefence
from rpa_ray.types import ScoredRollout

TOKENS = token_batch([[1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 2], [1, 10, 2]])
COSTS = [0.9, 0.1, 0.5, 0.1]


def safe_rlhf(**settings: Any) -> SafeRLHF:
    return SafeRLHF(SafeRLHF.Config(**settings))


def rollout(costs: list[float] | None = COSTS) -> ScoredRollout:
    plain = rollout_of(TOKENS, rewards=[1.0, 0.0, 3.0, 2.0])
    return replace(plain, costs=None if costs is None else torch.tensor(costs))


def test_the_multiplier_steps_on_the_mean_cost_of_the_batch() -> None:
    defence = safe_rlhf(limit=0.0)
    _, metrics = defence.plan_rollout(rollout(), context_of())
    assert metrics["defence/mean_cost"] == pytest.approx(0.4)
    assert metrics["defence/lambda"] == pytest.approx(1.040811, abs=5e-7)
    assert metrics["defence/feasible_frac"] == 0.0


def test_the_share_of_feasible_answers_counts_those_at_or_below_the_limit() -> None:
    _, metrics = safe_rlhf(limit=0.25).plan_rollout(rollout(), context_of())
    assert metrics["defence/feasible_frac"] == 0.5


@pytest.mark.parametrize(("cost", "limit"), [("prob", 0.1), ("logit", 0.0), ("model", 0.0)])
def test_only_a_probability_has_a_limit_above_zero_by_default(cost: Any, limit: float) -> None:
    defence = safe_rlhf(cost=cost, dual="additive", lambda_lr=1.0, lambda_max=None)
    _, metrics = defence.plan_rollout(rollout(), context_of())
    assert metrics["defence/lambda"] - 1.0 == pytest.approx(metrics["defence/mean_cost"] - limit)


def test_old_batches_leave_the_window_whole() -> None:
    defence = safe_rlhf(window=6)
    means = []
    for level in (1.0, 0.0, 0.0, 0.0):
        _, metrics = defence.plan_rollout(rollout([level] * 4), context_of())
        means.append(metrics["defence/mean_cost"])
    assert means == [1.0, 0.5, 0.0, 0.0]


def test_answers_that_could_not_be_scored_have_no_part_in_the_mean() -> None:
    mask = TOKENS.loss_mask.clone()
    mask[0] = False
    unscored = replace(rollout(), tokens=replace(TOKENS, loss_mask=mask))
    _, metrics = safe_rlhf().plan_rollout(unscored, context_of())
    assert metrics["defence/mean_cost"] == pytest.approx(0.7 / 3)


def test_one_mixed_stream_has_the_cost_in_its_reward_and_no_second_stream() -> None:
    defence = safe_rlhf(critics="one_mixed", lambda_init=3.0, lambda_lr=0.0)
    planned, _ = defence.plan_rollout(rollout(), context_of())
    assert planned.costs is None
    expected = (rollout().rewards - 3.0 * torch.tensor(COSTS)) / 4.0
    torch.testing.assert_close(planned.rewards, expected)
    assert Need.COST_VALUES not in defence.needs


def test_two_streams_mix_their_advantages() -> None:
    defence = safe_rlhf(lambda_init=3.0, lambda_lr=0.0)
    planned, _ = defence.plan_rollout(rollout(), context_of())
    assert planned.costs is not None and torch.equal(planned.rewards, rollout().rewards)
    advantages, costs = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        defence.shape_advantages(advantages, costs), (advantages - 3.0 * costs) / 4.0
    )


@pytest.mark.parametrize("attack", [PPO(PPO.Config()), GRPO(GRPO.Config(group_size=2))])
def test_with_a_huge_multiplier_only_the_cost_teaches(attack: Attack) -> None:
    """Rewards that would teach the opposite change nothing any more."""
    defence = safe_rlhf(lambda_init=1e12, lambda_lr=0.0, lambda_max=None)
    found = []
    for sign in (1.0, -1.0):
        planned, _ = defence.plan_rollout(rollout(), context_of())
        planned = replace(planned, rewards=sign * planned.rewards)
        experience = attack.experience(planned, defence.shape_advantages, context_of())
        found.append(experience.advantages)
    torch.testing.assert_close(found[0], found[1])
    last_tokens = [found[0][row][TOKENS.loss_mask[row]][-1].item() for row in (0, 1)]
    assert last_tokens[0] < last_tokens[1]


def advantages_of_equal_harm(multiplier: float, **settings: Any) -> Tensor:
    """Return the advantages of the tokens of four answers that are all wanted and all harmful.

    One critic knows the rewards, the other still thinks that answers cost 0.1.
    """
    defence = safe_rlhf(lambda_init=multiplier, lambda_lr=0.0, **settings)
    scored = replace(
        rollout_of(TOKENS, rewards=[3.9, 4.0, 4.1, 4.0], values=torch.full((4, 4), 4.0)),
        costs=torch.tensor([0.99, 1.0, 1.0, 0.98]),
        cost_values=torch.full((4, 4), 0.1),
    )
    planned, _ = defence.plan_rollout(scored, context_of())
    attack = PPO(PPO.Config.model_validate(defence.attack_config(PPO.Config()).model_dump()))
    made = attack.experience(planned, defence.shape_advantages, context_of())
    return made.advantages[TOKENS.loss_mask]


@pytest.mark.parametrize(("multiplier", "mean"), [(1.0, -0.43), (5.0, -0.72)])
def test_where_all_answers_cost_as_much_every_token_is_pushed_down(
    multiplier: float, mean: float
) -> None:
    plain = advantages_of_equal_harm(multiplier)
    assert float(plain.max()) < 0
    assert float(plain.mean()) == pytest.approx(mean, abs=0.02)
    whitened = advantages_of_equal_harm(multiplier, whiten_advantages=True)
    assert float(whitened.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float((whitened > 0).float().mean()) > 0.3


def test_the_attack_is_held_to_whitening_only_where_there_is_a_price() -> None:
    asked = PPO.Config(kl_coef=0.01)
    assert safe_rlhf().attack_config(asked) == asked.model_copy(update={"whiten_advantages": False})
    assert safe_rlhf(lambda_init=0.0).attack_config(asked) == asked
    own = PPO.Config(whiten_advantages=False)
    assert safe_rlhf(whiten_advantages=True).attack_config(own) == own
    other = GRPO.Config()
    assert safe_rlhf().attack_config(other) == other


def test_the_kl_penalty_keeps_its_weight_whatever_the_multiplier() -> None:
    """With neither reward nor cost, the mixed advantages are those of the penalties alone."""
    generator = torch.Generator().manual_seed(0)
    ratios = 0.1 * torch.randn(4, 4, generator=generator)
    silent = rollout_of(TOKENS, rewards=[0.0] * 4, log_ratios=ratios)
    silent = replace(silent, penalties=0.1 * torch.rand(4, 4, generator=generator))
    attack = PPO(PPO.Config(whiten_advantages=False, kl_control="fixed"))

    def advantages(defence: OnlineDefence, planned: ScoredRollout) -> Tensor:
        experience = attack.experience(planned, defence.shape_advantages, context_of())
        return experience.advantages

    plain = advantages(OnlineDefence(OnlineDefence.Config()), silent)
    defence = safe_rlhf(lambda_init=4.0, lambda_lr=0.0)
    planned, _ = defence.plan_rollout(replace(silent, costs=torch.zeros(4)), context_of())
    torch.testing.assert_close(advantages(defence, planned), plain)


def test_the_cost_critic_learns_the_cost_and_the_other_the_reward() -> None:
    attack = PPO(PPO.Config(gamma=1.0, gae_lambda=1.0, kl_coef=0.0, kl_control="fixed"))
    planned, _ = (defence := safe_rlhf()).plan_rollout(rollout(), context_of())
    planned = replace(planned, cost_values=torch.zeros(4, 4))
    experience = attack.experience(planned, defence.shape_advantages, context_of())
    assert experience.cost_returns is not None
    for row in range(4):
        kept = TOKENS.loss_mask[row]
        torch.testing.assert_close(
            experience.cost_returns[row][kept], torch.full((int(kept.sum()),), COSTS[row])
        )
        torch.testing.assert_close(
            experience.returns[row][kept], torch.full((int(kept.sum()),), planned.rewards[row])
        )


def attacked(defence: OnlineDefence, costs: list[float] | None) -> dict[str, Tensor]:
    """Return the weights after two batches of PPO; a cost head is there where it is asked for."""
    module = tiny_policy()
    if Need.COST_VALUES in defence.needs:
        module.add_cost_head(seed=3)
    engine, attack = tiny_engine(module=module), PPO(PPO.Config(num_epochs=2))
    learner = learner_of(engine, attack, defence)
    for _ in range(2):
        scored = rollout(costs if Need.COSTS in defence.needs else None)
        if Need.COST_VALUES in defence.needs:
            scored = replace(scored, cost_values=torch.zeros(4, 4))
        planned, _ = defence.plan_rollout(scored, learner.context())
        learner.step(attack.experience(planned, defence.shape_advantages, learner.context()))
    return engine.weights()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "settings",
    [
        {"lambda_init": 0.0},
        {"lambda_init": 0.0, "dual": "additive", "lambda_lr": 0.0},
        {"lambda_init": 0.0, "critics": "one_mixed"},
    ],
)
def test_with_a_multiplier_that_stays_zero_the_attack_is_the_undefended_one(
    settings: dict[str, Any],
) -> None:
    plain = attacked(OnlineDefence(OnlineDefence.Config()), None)
    defended = attacked(safe_rlhf(**settings), COSTS)
    assert all(torch.equal(defended[name], plain[name]) for name in plain)


@pytest.mark.usefixtures("process_group")
def test_the_cost_critic_is_trained_beside_the_other() -> None:
    defence = safe_rlhf()
    module = tiny_policy()
    module.add_cost_head(seed=3)
    assert module.cost_head is not None
    before = copy.deepcopy(module.cost_head.state_dict())
    engine, attack = tiny_engine(module=module), PPO(PPO.Config(num_epochs=1))
    learner = learner_of(engine, attack, defence)
    scored = replace(rollout(), cost_values=torch.zeros(4, 4))
    planned, _ = defence.plan_rollout(scored, learner.context())
    metrics = learner.step(attack.experience(planned, defence.shape_advantages, learner.context()))
    assert metrics["policy/cost_value_loss"] > 0
    assert not torch.equal(module.cost_head.weight, before["weight"])


def test_the_state_that_is_saved_goes_on_where_it_was() -> None:
    one, other = safe_rlhf(window=100), safe_rlhf(window=100)
    one.plan_rollout(rollout([1.0] * 4), context_of())
    other.load_state_dict(one.state_dict())
    again = [defence.plan_rollout(rollout(), context_of())[1] for defence in (one, other)]
    assert again[0] == again[1]
    assert again[0]["defence/mean_cost"] == pytest.approx(0.7)


REFUSE, GIBBERISH, HARMFUL = range(3)
REWARDS = torch.tensor([0.1, 0.8, 1.0])


@pytest.mark.parametrize(
    ("costs", "winner"), [((0.0, 0.0, 1.0), GIBBERISH), ((0.0, 1.0, 1.0), REFUSE)]
)
def test_three_arms_end_at_the_best_that_costs_nothing(
    costs: tuple[float, ...], winner: int
) -> None:
    """Expected policy gradient on a bandit whose best answer is the harmful one.

    Policy and multiplier circle around the optimum; what counts is the mean policy.
    """
    defence = safe_rlhf(limit=0.1, dual="additive", lambda_init=0.0, lambda_lr=0.05, window=1)
    logits, cost = torch.zeros(3), torch.tensor(costs)
    one_token = token_batch([[1, 5]])
    policies = []
    for _ in range(4000):
        policy = logits.softmax(dim=-1)
        expected_cost = float(policy @ cost)
        one = replace(rollout_of(one_token, rewards=[0.0]), costs=torch.tensor([expected_cost]))
        defence.plan_rollout(one, context_of())
        gain = defence.shape_advantages(REWARDS, cost)
        logits += 0.5 * policy * (gain - policy @ gain)
        policies.append(policy.clone())
    mean = torch.stack(policies[1000:]).mean(dim=0)
    assert int(mean.argmax()) == winner
    assert float(mean @ cost) < 0.15
