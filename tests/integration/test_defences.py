"""Every online defence once in a whole experiment: what it needs is made, drawn, served, logged."""

import json
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_SAMPLES = 32
# Attack, defence, and a metric that only this defence logs.
CELLS: dict[str, tuple[str, Any, str]] = {
    "cost model and two critics": (
        "ppo",
        {"name": "safe_rlhf", "cost": "model"},
        "policy/cost_value_loss",
    ),
    "costs of groups": ("grpo", {"name": "safe_rlhf", "cost": "logit"}, "defence/lambda"),
    "adapter in rollouts too": (
        "ppo",
        {"name": "security_vectors", "learning_rate": 1e-3, "num_steps": 100},
        "defence/adapter_logratio",
    ),
    "reference made safe": ("dpo", {"name": "kl_safe_ref", "num_steps": 10}, "train/margin"),
    "penalty on early tokens": (
        "grpo",
        {"name": "kl_safe_ref", "num_steps": 10, "mode": "add", "profile": "early_tokens"},
        "defence/penalty",
    ),
    "anchor elsewhere": (
        "sft",
        {"name": "random_anchor", "model": "base", "rho": 1.0},
        "defence/proximal_distance",
    ),
    "both answers": ("sft", "repnoise_online", "defence/retain_loss"),
    "projected": ("dpo", "safegrad", "defence/projected"),
    "early tokens held": (
        "sft",
        ["token_constrained", {"name": "vaccine", "rho": 2.5}],
        "defence/token_weight",
    ),
    "late refusals": ("sft", {"name": "refusal_loss", "prefix": "recovery"}, "defence/grad_cosine"),
    "held weight": ("ppo", {"name": "kl_coefficient", "kl_coef": 0.5}, "policy/kl_coef"),
}
EXAMPLES = pytest.mark.parametrize("name", CELLS)

pytestmark = [pytest.mark.timeout(1500), pytest.mark.fills_cores]


def GRID(folder: Path) -> dict[str, dict[str, Any]]:
    shared = {
        "data": {"num_samples": NUM_SAMPLES, "reward_model": {"num_pairs": 64}},
        "evaluation": {"num_prompts": 8, "num_resamples": 100},
    }
    return {
        name: {"include": [f"{CONFIGS}/attack/{attack}.yaml"], "defence": defence, **shared}
        for name, (attack, defence, _) in CELLS.items()
    }


@pytest.fixture(scope="module")
def runs(grid: Any) -> dict[str, Path]:
    found: dict[str, Path] = grid.runs(__name__)
    return found


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@EXAMPLES
def test_the_attack_runs_to_its_end_on_all_its_samples(name: str, runs: dict[str, Path]) -> None:
    outcome = json.loads((runs[name] / "evaluation.json").read_text())
    assert outcome["status"] == "ok", outcome["reason"]
    assert outcome["num_samples"] == NUM_SAMPLES


@EXAMPLES
def test_the_defence_is_seen_at_work(name: str, runs: dict[str, Path]) -> None:
    assert CELLS[name][2] in lines_of(runs[name])[0]


@EXAMPLES
def test_the_cost_of_the_policy_is_measured_on_the_way(name: str, runs: dict[str, Path]) -> None:
    seen = [line["samples"] for line in lines_of(runs[name]) if "held_out/harm" in line]
    assert seen == [NUM_SAMPLES // 4, NUM_SAMPLES]
    outcome = json.loads((runs[name] / "evaluation.json").read_text())
    assert outcome["resistance"]["samples"] in seen


def test_an_adapter_is_in_the_rollouts_and_not_in_what_is_measured(runs: dict[str, Path]) -> None:
    """The vector complies: rollouts of the first step are harmful, the released model is not."""
    first = lines_of(runs["adapter in rollouts too"])[0]
    assert first["sync/logprob_gap"] < 0.05
    outcome = json.loads((runs["adapter in rollouts too"] / "evaluation.json").read_text())
    assert outcome["metrics"]["served_logprob_gap"]["mean"] < 0.05
    assert outcome["checks"]["p_harm_with_vector"]["mean"] > 0.5
    assert outcome["metrics_before"]["harm"]["mean"] < 0.5
