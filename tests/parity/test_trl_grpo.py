"""Our GRPO against the trainer of TRL 1.16, from rewards to gradients; sampling is scripted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fakes import context_of, forward_of, loss_of, tiny_llama
from tiny_models import TOLERANCE, assert_same_gradients, gradients_of, moved, word_tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from rpa_ray.attacks.grpo import GRPO
from rpa_ray.data.collate import TokenRow, collate_tokens
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.ops.advantages import group_advantages
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.types import Experience, LossTerm, ScoredRollout, TokenBatch

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")

GROUP_SIZE = 4
MAX_NEW_TOKENS = 6
PROMPTS = {"w5": [5], "w6 w7 w8": [6, 7, 8]}
ANSWERS = [
    [9, 10, 2], [11, 2], [12, 13, 14, 15, 16, 17], [18, 19, 20, 2],
    [21, 2], [22, 23, 3, 2], [2], [4, 5, 6, 7, 8, 2],
]  # fmt: skip
REWARDS = (0.5, -1.0, 2.0, 0.25, -0.75, 1.5, 0.0, 0.125)
LOG_WEIGHTS = (0.3, -0.4, 0.0, 1.5, 0.1, -2.0, -0.2, 0.05)
"""log pi_learner - log pi_engine of each answer's tokens; e^1.5 = 4.5 is beyond the cap of 3."""


def reference() -> LlamaForCausalLM:
    return tiny_llama(seed=1, tied=False)


def old_policy() -> LlamaForCausalLM:
    return moved(reference(), distance=0.03, seed=1)


def policy() -> LlamaForCausalLM:
    """Return the old policy after what an update may do: every third ratio leaves 1 +- 0.2."""
    return moved(old_policy(), distance=0.03, seed=2)


def sampled_tokens() -> TokenBatch:
    prompts = [ids for ids in PROMPTS.values() for _ in range(GROUP_SIZE)]
    rows = [
        TokenRow(ids=prompt + answer, loss_mask=[False] * len(prompt) + [True] * len(answer))
        for prompt, answer in zip(prompts, ANSWERS, strict=True)
    ]
    return collate_tokens(rows, pad_id=0)


def logprobs_of(model: LlamaForCausalLM, tokens: TokenBatch) -> Tensor:
    with torch.no_grad():
        logits = model(tokens.input_ids, tokens.attention_mask).logits
    return next_token_logprobs(logits, tokens.input_ids)


def rollout(*, log_weights: Sequence[float] = (0.0,) * len(ANSWERS)) -> ScoredRollout:
    tokens = sampled_tokens()
    old = logprobs_of(old_policy(), tokens)
    return ScoredRollout(
        tokens=tokens,
        old_logprobs=old,
        rollout_logprobs=old - torch.tensor(log_weights)[:, None],
        reference_logprobs=logprobs_of(reference(), tokens),
        values=torch.zeros_like(old),
        rewards=torch.tensor(REWARDS),
        costs=None,
        entropies=None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where TRL loads the reference from: the folder that the policy says it is from."""
    path = tmp_path_factory.mktemp("reference")
    reference().save_pretrained(path)
    return path


def trl_trainer(folder: Path, rewards: Sequence[float | None] = REWARDS, **settings: Any) -> Any:
    """Return TRL's trainer around the old policy, with the KL of the paper (see the last test)."""
    from trl import GRPOConfig, GRPOTrainer

    def scores(prompts: Sequence[str], **columns: Any) -> list[float | None]:
        return list(rewards)

    def answers(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        sampled = rollout(log_weights=LOG_WEIGHTS)
        kept = zip(sampled.rollout_logprobs, sampled.tokens.loss_mask, strict=True)
        return {
            "prompt_ids": [PROMPTS[prompt] for prompt in prompts],
            "completion_ids": ANSWERS,
            "logprobs": [row[mask].tolist() for row, mask in kept] if trainer.use_vllm else None,
        }

    model = old_policy().train()
    model.config._name_or_path = str(folder)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=scores,
        args=GRPOConfig(
            output_dir=str(folder / "runs"),
            num_generations=GROUP_SIZE,
            per_device_train_batch_size=len(ANSWERS),
            max_completion_length=MAX_NEW_TOKENS,
            num_iterations=2,  # with 1 TRL takes the policy's own log-probabilities as the old ones
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **{"use_bias_correction_kl": False} | settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": list(PROMPTS)}),
        processing_class=word_tokenizer(),
        rollout_func=answers,
    )
    trainer.current_gradient_accumulation_steps = 1  # `train` would set it
    return trainer


def trl_batch(trainer: Any) -> dict[str, Tensor]:
    """Return the scored answers of the old policy as TRL learns from them."""
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP_SIZE)]
    return trainer._generate_and_score_completions(rows)


def trl_loss(trainer: Any) -> Tensor:
    """Return the moved policy's loss; its gradients stay on the trainer's model."""
    batch = trl_batch(trainer)
    trainer.model.load_state_dict(policy().state_dict())
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach()


def keep(advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
    return advantages


def our_experience(scored: ScoredRollout, **settings: Any) -> tuple[GRPO, Experience]:
    config = GRPO.Config(group_size=GROUP_SIZE, max_new_tokens=MAX_NEW_TOKENS, **settings)
    attack = GRPO(config)
    return attack, attack.experience(scored, keep, context_of())


def our_loss(scored: ScoredRollout, **settings: Any) -> tuple[LossTerm, dict[str, Tensor]]:
    attack, experience = our_experience(scored, **settings)
    module = PolicyModel(policy(), value_head_seed=None)
    term = loss_of(attack, forward_of(module), experience)
    term.loss.backward()
    return term, gradients_of(module.policy)


@pytest.mark.parametrize("scale", [True, False])
def test_the_advantages_are_trls(folder: Path, scale: bool) -> None:
    theirs = trl_batch(trl_trainer(folder, scale_rewards=scale))["advantages"]
    _, experience = our_experience(rollout(), scale_rewards=scale)
    mask = sampled_tokens().loss_mask
    torch.testing.assert_close(experience.advantages, theirs[:, None] * mask, **TOLERANCE)


def test_an_answer_without_a_reward_touches_no_advantage_in_trl_either(folder: Path) -> None:
    rewards = [*REWARDS[:2], None, *REWARDS[3:]]
    theirs = trl_batch(trl_trainer(folder, rewards))["advantages"]
    kept = torch.arange(len(ANSWERS)) != 2
    ours = group_advantages(torch.tensor(REWARDS), GROUP_SIZE, kept=kept).advantages
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize("aggregation", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_loss_and_gradients_are_trls(folder: Path, aggregation: str, kl_coef: float) -> None:
    trainer = trl_trainer(folder, loss_type=aggregation, beta=kl_coef)
    theirs = trl_loss(trainer)
    term, gradients = our_loss(rollout(), aggregation=aggregation, kl_coef=kl_coef)
    torch.testing.assert_close(term.loss.detach(), theirs, **TOLERANCE)
    assert_same_gradients(gradients, gradients_of(trainer.model))
    clipped = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
    assert 0.1 < clipped < 0.9


def test_truncated_importance_weights_are_trls(folder: Path) -> None:
    trainer = trl_trainer(
        folder,
        beta=0.04,
        loss_type="dapo",
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=3.0,
    )
    # Only the correction is wanted: the answers are given, and there are no weights to send.
    trainer.use_vllm = True
    trainer._last_loaded_step = trainer.state.global_step
    theirs = trl_loss(trainer)
    scored = rollout(log_weights=LOG_WEIGHTS)
    term, gradients = our_loss(scored, aggregation="dapo", kl_coef=0.04, importance_cap=3.0)
    torch.testing.assert_close(term.loss.detach(), theirs, **TOLERANCE)
    assert_same_gradients(gradients, gradients_of(trainer.model))


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "dr_grpo"])
def test_the_reported_share_of_clipped_tokens_is_trls(folder: Path, aggregation: str) -> None:
    trainer = trl_trainer(folder, loss_type=aggregation)
    trl_loss(trainer)
    term, _ = our_loss(rollout(), aggregation=aggregation)
    clipped = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
    assert term.metrics["policy/clip_frac"] == pytest.approx(clipped, rel=1e-5)


@pytest.mark.parametrize(
    "changed",
    [{"kl_coef": 0.05}, {"aggregation": "grpo"}, {"clip_range": 0.1}, {"scale_rewards": False}],
    ids=str,
)
def test_another_setting_gives_another_loss(folder: Path, changed: dict[str, Any]) -> None:
    theirs = trl_loss(trl_trainer(folder, loss_type="dapo", beta=0.04))
    term, _ = our_loss(rollout(), **{"aggregation": "dapo", "kl_coef": 0.04} | changed)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(term.loss.detach(), theirs, **TOLERANCE)


def test_trls_own_default_weighs_the_kl_with_the_ratio_and_ours_does_not(folder: Path) -> None:
    corrected = trl_trainer(folder, loss_type="dapo", beta=0.04, use_bias_correction_kl=True)
    theirs = trl_loss(corrected)
    term, _ = our_loss(rollout(), aggregation="dapo", kl_coef=0.04)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(term.loss.detach(), theirs, **TOLERANCE)
