"""What holds for every defence of the table, the next one included."""

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    frozen_of,
    learner_of,
    rollout_of,
    saved_llama,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from tiny_vectors import write_vector
from torch import Tensor

from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.defences import DEFENCES
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plugin import Need, OnlineDefence
from rpa_ray.types import PairBatch

WITHOUT_SWITCH = {
    "none": "it is what the others are compared with",
    "freeze": "a control: no update at all",
    "low_lr": "a control: the rate is a tenth",
    "dpo_beta": "it takes the place of the attack's own setting",
    "kl_coefficient": "it takes the place of the attack's own setting",
}
"""Defences that no strength switches off, and why."""
BESIDE_IT: dict[str, dict[str, Any]] = {
    "kl_safe_ref": {"mode": "add"},  # the other mode has no weight
    "safe_rlhf": {"critics": "one_mixed"},  # a second critic learns on the same trunk
    "refusal_loss": {"probe_every": 1},
    "security_vectors": {"ref_adapter": True},
}
"""Settings with which the strength is asked for: those that would show most."""
SWITCH = re.compile(r'^ +(\w+): float = Field\([^"]*"""[^"]*\b0 is no defence', re.MULTILINE)
"""A field whose docstring says so."""

TOKENS = token_batch([[1, 5, 6, 7, 8, 9, 10, 2], [1, 8, 2], [1, 9, 9, 9, 2]])
SAFE = token_batch([[1, 13, 4, 15, 2], [1, 16, 14, 2]], num_prompt_tokens=2)
HARMLESS = token_batch([[1, 20, 21, 7, 2], [1, 3, 22, 2]], num_prompt_tokens=3)
PAIRS = PairBatch(
    chosen=token_batch([[1, 4, 5, 6, 2], [1, 5, 7, 2]], width=6),
    rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], width=6),
)
KINDS = [(1, True)]
"""ZeRO stage and whether weights are bfloat16; what differs by stage is in test_zero_ranks."""


def switch_of(name: str) -> str | None:
    """Return the setting of a defence of which 0 is no defence, if it says so."""
    for config in DEFENCES[name].Config.__mro__[:-1]:
        if config.__module__.startswith("rpa_ray.") and (
            found := SWITCH.search(inspect.getsource(config))
        ):
            return found[1]
    return None


SWITCHED = [name for name in DEFENCES if name not in WITHOUT_SWITCH]


def defence_at(name: str, strength: float) -> OnlineDefence:
    defence, switch = DEFENCES[name], switch_of(name)
    assert switch is not None
    settings = BESIDE_IT.get(name, {}) | {switch: strength}
    return defence(defence.Config.model_validate({"name": name} | settings))


def attacked(
    defence: OnlineDefence, like: OnlineDefence, folder: Path, *, zero_stage: int, bf16: bool
) -> dict[str, Tensor]:
    """Return the weights after two batches of an attack that ``like`` can stand against."""
    module = tiny_policy(bf16=bf16)
    defence.attach(
        module,
        {
            Need.COMPARED_WEIGHTS: str(saved_llama(folder / "other", seed=5)),
            Need.SECURITY_VECTOR: str(folder / "vector"),
        },
    )
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16, module=module)
    original = tiny_policy(bf16=bf16, value_head=False)
    defence.attach_reference(original)
    compared = tiny_policy(bf16=bf16, seed=5, value_head=False)
    if Need.ORIGINAL in defence.needs:
        compared = original
        defence.attach_compared(compared)
    on_targets = Need.TARGETS in like.needs_of_attack
    learner = learner_of(
        engine,
        SFT(SFT.Config()) if on_targets else PPO(PPO.Config()),
        defence,
        safe_batch=SAFE,
        contrast_batch=PAIRS,
        harmless_batch=HARMLESS,
        frozen=frozen_of(compared),
    )
    for _ in range(2):
        learner.step(TOKENS if on_targets else experience(learner, defence))
    return engine.weights()


def experience(learner: Any, defence: OnlineDefence) -> Any:
    """Return what PPO makes of a rollout, with all that the defence has to say to it."""
    with torch.no_grad():
        outputs = learner.forward(TOKENS.input_ids, TOKENS.attention_mask)
    old = next_token_logprobs(outputs.logits, TOKENS.input_ids)
    rollout = replace(
        rollout_of(TOKENS, rewards=[1.0, 2.0, 0.0]),
        old_logprobs=old,
        rollout_logprobs=old,
        reference_logprobs=old - 0.1,
        costs=torch.tensor([0.9, 0.1, 0.5]),
    )
    context = learner.context()
    rollout, _ = defence.plan_rollout(rollout, context)
    return PPO(PPO.Config()).experience(rollout, defence.shape_advantages, context)


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_vector(folder / "vector")
    return folder


@pytest.mark.parametrize("name", SWITCHED)
def test_a_defence_says_which_strength_is_none(name: str) -> None:
    assert switch_of(name) is not None, (
        f"the docstring of one setting of {name} must say that '0 is no defence'; a defence that "
        "has no such setting is listed in WITHOUT_SWITCH with the reason"
    )


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("zero_stage", "bf16"), KINDS)
@pytest.mark.parametrize("name", SWITCHED)
def test_strength_0_is_no_defence_bit_for_bit_and_another_is_one(
    name: str, zero_stage: int, bf16: bool, folder: Path
) -> None:
    off, on = defence_at(name, 0.0), defence_at(name, 0.5)
    none = OnlineDefence(OnlineDefence.Config())
    plain, at_zero, defended = (
        attacked(defence, on, folder, zero_stage=zero_stage, bf16=bf16)
        for defence in (none, off, on)
    )
    assert differing(plain, at_zero) == []
    assert differing(plain, defended) != []
