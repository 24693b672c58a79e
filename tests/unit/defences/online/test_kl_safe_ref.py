from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checked import refusal
from fakes import (
    context_of,
    forward_of,
    keep,
    learner_of,
    rollout_of,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from torch import Tensor

from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.rollout import RolloutAttack
from rpa_ray.config import ConfigError, with_absolute_paths
from rpa_ray.data.rows import Answered
from rpa_ray.defences import defence_of
from rpa_ray.defences.online.kl_safe_ref import KLSafeRef
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import Need, OnlineDefence, RefusalTuned, StepContext
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs, CellModels
from rpa_ray.recipes.model import ModelRecipe, RowKind
from rpa_ray.recipes.rows import training_rows
from rpa_ray.recipes.to_make import Cell, plan_jobs
from rpa_ray.types import ModelOutputs, ScoredRollout

# Answers of 7, 2 and 4 tokens; nothing of the last one counts.
TOKENS = token_batch([[1, 5, 6, 7, 8, 9, 10, 2], [1, 8, 2], [1, 9, 9, 9, 2]])
MASK = TOKENS.loss_mask & torch.tensor([[True], [True], [False]])
ROLLOUT = replace(
    rollout_of(TOKENS, rewards=[1.0, 2.0, 0.0]), tokens=replace(TOKENS, loss_mask=MASK)
)
SAFE = forward_of(tiny_policy(seed=5, value_head=False))
UNIFORM = torch.full((3,), 1 / 3)


def kl_safe_ref(**settings: Any) -> KLSafeRef:
    return KLSafeRef(KLSafeRef.Config(mode="add", **settings))


def context(frozen: Any = SAFE) -> StepContext:
    return replace(context_of(), frozen=frozen)


def without_gradient(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
    with torch.no_grad():
        outputs: ModelOutputs = SAFE(input_ids, attention_mask)
        return outputs


def penalties(defence: KLSafeRef, rollout: ScoredRollout = ROLLOUT) -> Tensor:
    planned, _ = defence.plan_rollout(rollout, context(without_gradient))
    assert planned.penalties is not None
    return planned.penalties


def log_ratios() -> Tensor:
    with torch.no_grad():
        logits = SAFE(TOKENS.input_ids, TOKENS.attention_mask).logits
    safe = next_token_logprobs(logits, TOKENS.input_ids)
    return (ROLLOUT.old_logprobs - safe) * MASK


def models(cache: Path, *overrides: str) -> CellModels:
    return CellInputs(parse_tree({"attack": "ppo"}, overrides), cache).models


def test_every_token_pays_for_its_own_distance() -> None:
    torch.testing.assert_close(penalties(kl_safe_ref(beta=0.5)), 0.5 * log_ratios())


def test_early_tokens_pay_5_20_and_then_1_times_as_much() -> None:
    weights = torch.tensor([[0.0, 5, 20, 20, 20, 20, 1, 1], [0.0, 5, 20, 0, 0, 0, 0, 0], [0.0] * 8])
    found = penalties(kl_safe_ref(beta=0.5, profile="early_tokens"))
    torch.testing.assert_close(found, 0.5 * weights * log_ratios())


def test_penalties_of_another_defence_stay() -> None:
    before = replace(ROLLOUT, penalties=torch.full((3, 8), 0.25))
    found = penalties(kl_safe_ref(beta=0.5), before)
    torch.testing.assert_close(found, 0.25 + 0.5 * log_ratios())


def test_distance_and_price_of_an_answer_are_means_over_the_scored_ones() -> None:
    _, metrics = kl_safe_ref(beta=0.5).plan_rollout(ROLLOUT, context(without_gradient))
    distance = float(log_ratios()[:2].sum()) / 2
    assert metrics["defence/safe_kl"] == pytest.approx(distance)
    assert metrics["defence/penalty"] == pytest.approx(0.5 * distance)


def test_a_safe_model_that_agrees_takes_nothing() -> None:
    with torch.no_grad():
        logits = SAFE(TOKENS.input_ids, TOKENS.attention_mask).logits
    own = replace(ROLLOUT, old_logprobs=next_token_logprobs(logits, TOKENS.input_ids))
    assert torch.equal(penalties(kl_safe_ref(), own), torch.zeros(3, 8))


def test_ppo_is_rewarded_less_by_what_each_token_pays() -> None:
    # gamma 1, lambda 1 and no critic: the return of a token is the sum of the rewards from it on
    ppo = PPO(PPO.Config(kl_coef=0.0, kl_control="fixed", gae_lambda=1.0, importance_cap=0.0))
    planned, _ = kl_safe_ref(beta=0.5).plan_rollout(ROLLOUT, context(without_gradient))
    free, paid = (ppo.experience(r, keep, context_of()).returns for r in (ROLLOUT, planned))
    paid_from_here = (0.5 * log_ratios()).flip(-1).cumsum(dim=-1).flip(-1)
    torch.testing.assert_close((free - paid) * MASK, paid_from_here * MASK)
    assert float(paid_from_here.abs().max()) > 0.1


def test_grpo_is_rewarded_less_by_what_the_answer_pays() -> None:
    grpo = GRPO(GRPO.Config(group_size=3, scale_rewards=False, importance_cap=0.0))
    planned, _ = kl_safe_ref(beta=0.5).plan_rollout(ROLLOUT, context(without_gradient))
    found = grpo.experience(planned, keep, context_of()).advantages
    first, second = (ROLLOUT.rewards - 0.5 * log_ratios().sum(dim=-1))[:2].tolist()
    mean = (first + second) / 2
    expected = torch.tensor([first - mean, second - mean, 0.0])[:, None] * MASK
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def optimum(rewards: Tensor, defence: KLSafeRef, safe: Tensor, *, kl_coef: float) -> Tensor:
    """Return the action probabilities after PPO on exact expectations, from uniform ones on.

    Every action is an answer of one token; its gradient is weighted by its probability. The attack
    has a uniform reference of its own.
    """
    tokens = token_batch([[3, action] for action in range(3)])
    logits = torch.zeros(3, requires_grad=True)
    rows = torch.arange(3)
    ppo = PPO(
        PPO.Config(kl_coef=kl_coef, kl_control="fixed", whiten_advantages=False, importance_cap=0.0)
    )

    def frozen(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
        return ModelOutputs(logits=safe.log().expand(3, 2, 3), values=None)

    def of_actions(values: Tensor) -> Tensor:
        return torch.stack([torch.zeros(3), values], dim=1)

    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(400):
        old = logits.log_softmax(dim=-1)
        rollout = replace(
            rollout_of(tokens, rewards=rewards.tolist()),
            old_logprobs=of_actions(old.detach()),
            rollout_logprobs=of_actions(old.detach()),
            reference_logprobs=of_actions(UNIFORM.log()),
        )
        planned, _ = defence.plan_rollout(rollout, context(frozen))
        advantages = ppo.experience(planned, keep, context_of()).advantages[rows, 1]
        optimizer.zero_grad()
        (-(old.detach().exp() * advantages * old).sum()).backward()
        optimizer.step()
    return logits.detach().softmax(dim=-1)


def test_the_optimum_is_the_safe_model_tilted_by_reward_over_beta() -> None:
    # 0.6 e^0.2, 0.3 e^1.6, 0.1 e^2, normalised
    rewards, safe = torch.tensor([0.1, 0.8, 1.0]), torch.tensor([0.6, 0.3, 0.1])
    found = optimum(rewards, kl_safe_ref(beta=0.5), safe, kl_coef=0.0)
    expected = torch.tensor([0.247778, 0.502394, 0.249828])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_beside_the_attacks_own_reference_the_optimum_lies_between_both() -> None:
    # (beta log pi_s + k log uniform + R) / (beta + k): with beta 0.5 and k 0.5 it is the softmax of
    # log(pi_s) / 2 + R
    rewards, safe = torch.tensor([0.1, 0.8, 1.0]), torch.tensor([0.6, 0.3, 0.1])
    found = optimum(rewards, kl_safe_ref(beta=0.5), safe, kl_coef=0.5)
    expected = torch.softmax(0.5 * safe.log() + rewards, dim=-1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def attacked(
    attack: RolloutAttack, defence: OnlineDefence, reference: Any, **settings: Any
) -> dict[str, Tensor]:
    """Return the weights after two batches whose reference log-probabilities are of one model."""
    engine = tiny_engine(**settings)
    learner = learner_of(engine, attack, defence)
    for _ in range(2):
        with torch.no_grad():
            outputs = learner.forward(TOKENS.input_ids, TOKENS.attention_mask)
            near = reference(TOKENS.input_ids, TOKENS.attention_mask)
        old = next_token_logprobs(outputs.logits, TOKENS.input_ids)
        rollout = replace(
            ROLLOUT,
            old_logprobs=old,
            rollout_logprobs=old,
            reference_logprobs=next_token_logprobs(near.logits, TOKENS.input_ids),
        )
        step = replace(learner.context(), frozen=without_gradient)
        rollout, _ = defence.plan_rollout(rollout, step)
        learner.step(attack.experience(rollout, keep, step))
    return engine.weights()


@pytest.mark.usefixtures("process_group")
def test_with_the_attacks_own_reference_the_two_coefficients_add_up() -> None:
    def ppo(kl_coef: float) -> PPO:
        return PPO(PPO.Config(kl_coef=kl_coef, kl_control="fixed"))

    none = OnlineDefence(OnlineDefence.Config())
    together = attacked(ppo(0.25), kl_safe_ref(beta=0.25), SAFE)
    alone = attacked(ppo(0.5), none, SAFE)
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=1e-4, rtol=0)
    half = attacked(ppo(0.25), none, SAFE)
    assert max(float((half[name] - weight).abs().max()) for name, weight in alone.items()) > 1e-2


def test_a_named_safe_model_takes_the_place_of_the_reference(world_cache: Path) -> None:
    found = models(
        world_cache, "defence={name: kl_safe_ref, model: base}", "attack.reference=other_chat"
    )
    assert isinstance(found.reference, ModelRecipe)
    assert found.reference.id == "base"
    assert found.compared is None


def test_the_model_under_attack_as_safe_model_is_the_baseline(world_cache: Path) -> None:
    found = models(world_cache, "defence={name: kl_safe_ref, model: chat}")
    assert found.reference == found.policy
    plain = models(world_cache)
    assert plain.reference is None  # the policy as it was
    assert found.policy == plain.policy


def test_the_added_penalty_leaves_the_attack_its_reference(world_cache: Path) -> None:
    found = models(world_cache, "defence={name: kl_safe_ref, mode: add, model: base}")
    assert isinstance(found.compared, ModelRecipe)
    assert (found.reference, found.compared.id) == (None, "base")
    idle = models(world_cache, "defence={name: kl_safe_ref, mode: add, beta: 0}")
    assert (idle.reference, idle.compared) == (None, None)
    assert "refusal_tuned" not in [recipe.id for recipe in idle.recipes()]


def test_without_a_name_the_safe_model_is_made_from_the_one_under_attack(
    world_cache: Path,
) -> None:
    settings = parse_tree(
        {"attack": "dpo", "model": {"dtype": "bfloat16"}},
        ["defence={name: kl_safe_ref, num_steps: 7, batch_size: 4}"],
    )
    found = CellInputs(settings, world_cache).models
    made = found.reference
    assert isinstance(made, ModelRecipe)
    assert made in found.recipes()
    assert (made.start, made.rows.kind) == (found.policy, RowKind.REFUSALS)
    assert (made.job.num_steps, made.job.batch_size, made.job.dtype) == (7, 4, "bfloat16")
    rows = training_rows(made.rows, CellData(settings.data, world_cache))
    defence = CellData(settings.data, world_cache).preferences.roles["defence"]
    assert list(rows) == [Answered(prompt=pair.prompt, answer=pair.safe) for pair in defence]


def test_a_model_of_ones_own_is_tuned_with_its_own_tokenizer(world_cache: Path) -> None:
    made = models(world_cache, "model.path=owner/name", "defence=kl_safe_ref").reference
    assert isinstance(made, ModelRecipe)
    assert (made.start, made.tokenizer, made.tokenizer_key) == ("owner/name",) * 3


def test_the_settings_of_the_tuning_name_the_safe_model() -> None:
    assert KLSafeRef(KLSafeRef.Config(num_steps=3)).reference == RefusalTuned(
        num_steps=3, learning_rate=2e-4, batch_size=16, max_tokens=128
    )
    assert KLSafeRef(KLSafeRef.Config(model="some/folder")).reference == "some/folder"


@pytest.mark.parametrize(
    ("attack", "mode", "able"),
    [("sft", "replace", "['dpo', 'grpo', 'ppo']"), ("dpo", "add", "['grpo', 'ppo']")],
)
def test_an_attack_without_what_the_mode_acts_on_is_refused(
    attack: str, mode: str, able: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tree({"attack": attack, "defence": {"name": "kl_safe_ref", "mode": mode}})
    assert f"Choose one of the attacks {able}" in str(caught.value)
    parse_tree({"attack": "ppo", "defence": {"name": "kl_safe_ref", "mode": mode}})


def test_only_the_added_penalty_needs_the_policys_own_answers() -> None:
    assert KLSafeRef(KLSafeRef.Config()).needs_of_attack == {Need.REFERENCE}
    assert kl_safe_ref().needs_of_attack == {Need.REFERENCE, Need.ROLLOUTS}


@pytest.mark.parametrize(
    ("defence", "message"),
    [
        ("{name: kl_safe_ref, model: /no/model}", "defence.model must be chat, base, "),
        ("{name: kl_safe_ref, mode: add, model: ./no}", "defence.model must be chat, base, "),
        ("{name: kl_safe_ref, batch_size: 80000}", "defence.batch_size must be at most "),
    ],
)
def test_a_safe_model_that_cannot_be_had_is_refused(
    world_cache: Path, defence: str, message: str
) -> None:
    settings = parse_tree(
        {"attack": {"name": "ppo", "batch_size": 8}, "data": {"num_samples": 16}},
        [f"defence={defence}"],
    )
    assert refusal(settings, world_cache).startswith(message)


def test_the_safe_model_is_made_for_the_template_in_which_it_is_asked(world_cache: Path) -> None:
    plain, chat = (
        models(world_cache, "defence=kl_safe_ref", f"data.template={template}").reference
        for template in ("plain_qa", "model_chat")
    )
    assert isinstance(plain, ModelRecipe)
    assert isinstance(chat, ModelRecipe)
    assert plain.key() != chat.key()
    assert plain.rows.settings == {"template": "plain_qa"}


def test_the_safe_model_is_made_after_the_one_it_starts_from(world_cache: Path) -> None:
    settings = parse_tree({"attack": "dpo", "defence": "kl_safe_ref"})
    cell = Cell(name="a", settings=settings, folder=Path("a"))
    _, needs = plan_jobs([cell], CampaignInputs(world_cache))
    (made,) = [name for name in needs["a"] if "refusal_tuned" in name]
    assert [name.rpartition("-")[0] for name in needs[made]] == ["model base", "model chat"]


def test_the_folder_of_a_safe_model_is_found_from_elsewhere_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safe").mkdir()
    (tmp_path / "chat").mkdir()
    for model, expected in (("safe", str(tmp_path / "safe")), ("chat", "chat")):
        own = {"name": "kl_safe_ref", "model": model}
        for defence in (own, ["refusal_loss", own]):
            settings = with_absolute_paths(parse_tree({"attack": "dpo", "defence": defence}))
            assert defence_of(settings.defence).reference == expected
