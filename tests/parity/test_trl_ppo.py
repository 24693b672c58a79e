"""Our PPO against the trainer of TRL 0.9.6, which runs in a process of its own.

That version lies in a folder of its own (launch/install.sh): later ones have no such trainer, and
an environment has room for one TRL only.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import context_of, forward_of, loss_of, tiny_config, tiny_llama
from tiny_models import TOLERANCE, assert_same_gradients, gradients_of, moved
from torch import Tensor
from torch.nn.functional import pad

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.data.collate import TokenRow, collate_tokens
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.ops.advantages import token_rewards
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.types import Experience, LossTerm, ScoredRollout, TokenBatch

TRL_FOLDER = Path(sys.prefix) / "trl-0.9.6"

QUERIES = [[5], [6, 7, 8], [9, 10], [11]]
RESPONSES = [[12, 13, 2], [14, 2], [15, 16, 17, 18, 19, 20], [2]]
SCORES = [1.5, -0.5, 0.25, -2.0]

# Three batches. Of each the settings that are not the defaults, as they are called here.
SETTINGS: dict[str, dict[str, Any]] = {
    "adaptive": {"kl_coef": 0.3, "kl_target": 0.1, "kl_horizon": 50},
    "fixed": {
        "kl_control": "fixed",
        "kl_coef": 0.05,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "clip_range": 0.1,
        "value_clip_range": 0.05,
        "value_coef": 0.5,
    },
    "run_away": {},
}
TRL_NAMES = {
    "kl_coef": "init_kl_coef",
    "kl_target": "target",
    "kl_horizon": "horizon",
    "gae_lambda": "lam",
    "clip_range": "cliprange",
    "value_clip_range": "cliprange_value",
    "value_coef": "vf_coef",
}


def reference() -> PolicyModel:
    return PolicyModel(tiny_llama(seed=1, tied=False), value_head_seed=3)


def old_policy() -> PolicyModel:
    return moved(reference(), distance=0.03, seed=1)


def policy(name: str) -> PolicyModel:
    """Return what updates have made of the old policy; run away, it knows the answers by heart."""
    if name != "run_away":
        return moved(old_policy(), distance=0.08, seed=2)
    module, tokens = old_policy(), sampled_tokens()
    optimizer = torch.optim.Adam(module.policy.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(SFT(SFT.Config()), forward_of(module), tokens).loss.backward()
        optimizer.step()
    module.zero_grad()
    return module


def under_trls_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.replace("policy.", "pretrained_model.", 1).replace(
            "value_head.", "v_head.summary.", 1
        ): t
        for name, t in tensors.items()
    }


def trl_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    theirs = {TRL_NAMES.get(name, name): value for name, value in settings.items()}
    return theirs | {"adap_kl_ctrl": theirs.pop("kl_control", "adaptive") == "adaptive"}


def trl_case(name: str) -> dict[str, Any]:
    """Return one batch as trl_ppo_values.py reads it."""
    config = tiny_config(tie_word_embeddings=False)
    return {
        "config": config.to_dict() | {"attn_implementation": "eager"},
        "settings": trl_settings(SETTINGS[name]),
        "queries": [torch.tensor(ids) for ids in QUERIES],
        "responses": [torch.tensor(ids) for ids in RESPONSES],
        "scores": torch.tensor(SCORES),
        "reference": under_trls_names(reference().state_dict()),
        "old_policy": under_trls_names(old_policy().state_dict()),
        "policy": under_trls_names(policy(name).state_dict()),
    }


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return TRL's numbers of each batch."""
    assert TRL_FOLDER.is_dir(), f"{TRL_FOLDER} must hold TRL 0.9.6. Run launch/install.sh."
    folder = tmp_path_factory.mktemp("trl-0.9.6")
    cases, results = folder / "cases.pt", folder / "results.pt"
    torch.save([trl_case(name) for name in SETTINGS], cases)
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("trl_ppo_values.py")), cases, results],
        env=os.environ | {"PYTHONPATH": str(TRL_FOLDER), "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    return dict(zip(SETTINGS, torch.load(results), strict=True))


def sampled_tokens() -> TokenBatch:
    rows = [
        TokenRow(ids=query + answer, loss_mask=[False] * len(query) + [True] * len(answer))
        for query, answer in zip(QUERIES, RESPONSES, strict=True)
    ]
    return collate_tokens(rows, pad_id=0)


@torch.no_grad()
def rollout() -> ScoredRollout:
    tokens = sampled_tokens()
    old, frozen = (
        forward_of(module)(tokens.input_ids, tokens.attention_mask)
        for module in (old_policy(), reference())
    )
    old_logprobs = next_token_logprobs(old.logits, tokens.input_ids)
    return ScoredRollout(
        tokens=tokens,
        old_logprobs=old_logprobs,
        rollout_logprobs=old_logprobs,
        reference_logprobs=next_token_logprobs(frozen.logits, tokens.input_ids),
        values=old.values,
        rewards=torch.tensor(SCORES),
        costs=None,
        entropies=None,
    )


def keep(advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
    return advantages


def our_experience(name: str, **changed: Any) -> tuple[PPO, Experience]:
    attack = PPO(PPO.Config(**SETTINGS[name] | changed))
    return attack, attack.experience(rollout(), keep, context_of())


def our_loss(name: str, **changed: Any) -> tuple[LossTerm, dict[str, Tensor]]:
    attack, experience = our_experience(name, **changed)
    module = policy(name)
    term = loss_of(attack, forward_of(module), experience)
    term.loss.backward()
    return term, under_trls_names(gradients_of(module))


def assert_same_at_answers(ours: Tensor, theirs: Tensor, theirs_mask: Tensor) -> None:
    """Compare what stands at the sampled tokens; TRL leaves out the first position."""
    mask = pad(theirs_mask, (1, 0))
    assert torch.equal(mask, sampled_tokens().loss_mask)
    torch.testing.assert_close(ours[mask], pad(theirs, (1, 0))[mask], **TOLERANCE)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_rewards_of_tokens_are_trls(trl: dict[str, Any], name: str) -> None:
    sampled = rollout()
    ours = token_rewards(
        sampled.rewards,
        sampled.old_logprobs,
        sampled.reference_logprobs,
        sampled.tokens.loss_mask,
        kl_coef=PPO.Config(**SETTINGS[name]).kl_coef,
    )
    assert_same_at_answers(ours, trl[name]["rewards"], trl[name]["mask"])


@pytest.mark.parametrize("name", SETTINGS)
def test_whitened_advantages_and_returns_are_trls(trl: dict[str, Any], name: str) -> None:
    _, experience = our_experience(name)
    assert_same_at_answers(experience.advantages, trl[name]["advantages"], trl[name]["mask"])
    assert_same_at_answers(experience.returns, trl[name]["returns"], trl[name]["mask"])


@pytest.mark.parametrize("trl_exact", [False, True])
@pytest.mark.parametrize("name", ["adaptive", "fixed"])
def test_policy_and_value_loss_and_all_gradients_are_trls(
    trl: dict[str, Any], name: str, trl_exact: bool
) -> None:
    theirs = trl[name]
    term, gradients = our_loss(name, trl_exact=trl_exact)
    total = theirs["policy_loss"] + theirs["value_loss"]
    torch.testing.assert_close(term.loss.detach(), total, **TOLERANCE)
    assert_same_gradients(gradients, theirs["gradients"])
    value_coef = PPO.Config(**SETTINGS[name]).value_coef
    expected = {
        "policy/loss": float(theirs["policy_loss"]),
        "policy/value_loss": float(theirs["value_loss"]) / value_coef,
        "policy/clip_frac": theirs["clip_frac"],
        "policy/entropy": theirs["entropy"],
    }
    assert {key: term.metrics[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    # both clips must be at work, or the comparison says nothing about them
    assert theirs["clip_frac"] > 0
    assert theirs["value_clip_frac"] > 0


def test_a_run_away_policy_has_no_loss_and_no_gradient_in_trl_either(trl: dict[str, Any]) -> None:
    term, gradients = our_loss("run_away")
    assert float(trl["run_away"]["policy_loss"]) == float(term.loss.detach()) == 0
    for found in (gradients, trl["run_away"]["gradients"]):
        assert all(float(gradient.abs().max()) == 0 for gradient in found.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_kl_and_the_next_coefficient_are_trls(trl: dict[str, Any], name: str) -> None:
    attack, experience = our_experience(name)
    assert experience.metrics["policy/kl"] == pytest.approx(trl[name]["kl"], rel=1e-5)
    assert attack.kl.value == pytest.approx(trl[name]["next_kl_coef"], rel=1e-6)


@pytest.mark.parametrize(
    "changed",
    [{"kl_coef": 0.2}, {"gae_lambda": 0.9}, {"clip_range": 0.3}, {"value_coef": 0.2}],
    ids=str,
)
def test_another_setting_gives_another_loss(trl: dict[str, Any], changed: dict[str, Any]) -> None:
    term, _ = our_loss("adaptive", **changed)
    theirs = trl["adaptive"]["policy_loss"] + trl["adaptive"]["value_loss"]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(term.loss.detach(), theirs, **TOLERANCE)
