"""A step of every offline defence is the same on two ranks and in any micro-batches."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fakes import frozen_of, learner_of, tiny_engine, tiny_policy, token_batch, whole_weights

from rpa_ray.config import LoraSettings
from rpa_ray.defences import OFFLINE_DEFENCES
from rpa_ray.defences.offline.circuit_breakers import CircuitBreakers
from rpa_ray.defences.offline.grad_penalty import GradPenalty
from rpa_ray.defences.offline.repnoise import RepNoise
from rpa_ray.defences.offline.rmu import RMU
from rpa_ray.defences.offline.tar import TAR
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import add_lora
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plugin import OfflineDefence
from rpa_ray.types import PairBatch

pytestmark = pytest.mark.timeout(600)

# Adam's first step is as long where a gradient is rounding alone: a larger rate would show it.
ADVERSARIES: dict[str, Any] = {
    "num_tasks": 2,
    "inner_steps": 2,
    "look_every": 1,
    "inner_learning_rates": [1e-4],
}
DEFENCES: dict[str, Callable[[], OfflineDefence]] = {
    "repnoise": lambda: RepNoise(RepNoise.Config(beta=0.5)),
    "repnoise_positionwise": lambda: RepNoise(RepNoise.Config(beta=0.5, mask="positionwise_diff")),
    "circuit_breakers": lambda: CircuitBreakers(CircuitBreakers.Config()),
    "circuit_breakers_original": lambda: CircuitBreakers(
        CircuitBreakers.Config(variant="original", strength=0.1)
    ),
    "circuit_breakers_lora": lambda: CircuitBreakers(
        CircuitBreakers.Config(variant="original", strength=0.1, lora=LoraSettings(rank=4, alpha=4))
    ),
    "grad_penalty": lambda: GradPenalty(GradPenalty.Config(gamma=0.1, relative_step=1e-2)),
    "rmu": lambda: RMU(RMU.Config()),
    "rmu_original": lambda: RMU(RMU.Config(variant="original", retain_weight=2.0)),
    "tar": lambda: TAR(TAR.Config(**ADVERSARIES)),
    "tar_max_entropy": lambda: TAR(TAR.Config(tamper_loss="max_entropy", **ADVERSARIES)),
    "tar_repnoise": lambda: TAR(TAR.Config(tamper_loss="repnoise", **ADVERSARIES)),
}
ELSEWHERE = {
    "vaccine_offline": "is Vaccine around SFT, a case of the ranks of online defences",
    "reward_neutralisation": "is GRPO, whose advantages it scales; GRPO is tested on two ranks",
    "frpo": "learns from rollouts; that parts of a step add up is in its own test",
    "token_buncher": "learns from rollouts; that parts of a step add up is in its own test",
}
"""Defences of the table that are no case here, and why."""
# Rows of one to eight tokens in no order: ranks and micro-batches hold rows of different widths.
LENGTHS = [8, 1, 3, 2, 5, 1, 1, 2, 4, 2, 3, 1]
REFUSALS = [[1, 9, *range(12, 12 + n), 2] for n in reversed(LENGTHS)]
UNSAFE = [[1, 9, *range(3, 3 + n), 2] for n in LENGTHS]
HARMLESS = [[1, *range(22 - n, 22)] for n in LENGTHS]
NUM_UPDATES = 2
"""The second is the first in which the authors' schedule of Circuit Breakers retains anything."""
CASES = [(name, stage) for stage in (3, 1) for name in DEFENCES]
"""Stage 3 first, as in the test of the online defences."""


def trained(defence: OfflineDefence, ranks: Ranks, *, zero_stage: int, rows: int) -> Any:
    """Return weights and metrics after two updates, ``rows`` of them in a micro-batch."""
    module, start = tiny_policy(value_head=False), tiny_policy(seed=5, value_head=False)
    if defence.lora is not None:
        add_lora(module, defence.lora, seed=1)
    objective, hooks = defence.objective(), defence.hooks()
    hooks.attach(module, {})
    hooks.attach_compared(start)
    engine = tiny_engine(
        module=module,
        zero_stage=zero_stage,
        num_ranks=ranks.size,
        micro_batch_size=rows,
        # Nearly proportional to the gradient: an error in its scale shows, and rounding does not.
        optimizer=OptimizerSettings(learning_rate=0.1, num_steps=NUM_UPDATES, eps=1.0),
    )
    safe, unsafe = ranks.part(REFUSALS), ranks.part(UNSAFE)
    width = max(len(row) for row in [*safe, *unsafe])
    pairs = PairBatch(
        chosen=token_batch(safe, num_prompt_tokens=2, width=width),
        rejected=token_batch(unsafe, num_prompt_tokens=2, width=width),
    )
    learner = learner_of(
        engine,
        objective,
        hooks,
        ranks=ranks,
        contrast_batch=pairs,
        harmless_batch=token_batch(ranks.part(HARMLESS), num_prompt_tokens=2),
        frozen=frozen_of(start),
    )
    metrics = [learner.step(pairs.chosen) for _ in range(NUM_UPDATES)]
    return {"weights": whole_weights(engine), "metrics": metrics}


def work(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_ranks)
    ranks = Ranks.current()
    found = {
        (name, stage): trained(DEFENCES[name](), ranks, zero_stage=stage, rows=5)
        for name, stage in CASES
    }
    if num_ranks == 1:
        for name in DEFENCES:
            found[name, 0] = trained(DEFENCES[name](), ranks, zero_stage=1, rows=64)
    torch.save(found, Path(folder, f"outcome{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Return what the first of one and of two ranks finds."""
    multiprocessing.set_forkserver_preload(["rpa_ray.ops.openrlhf", "deepspeed", "transformers"])
    found = {}
    for num_ranks in (1, 2):
        folder = tmp_path_factory.mktemp("ranks")
        args = (num_ranks, str(folder))
        mp.start_processes(work, args, num_ranks, start_method="forkserver")
        found[num_ranks] = torch.load(folder / "outcome0.pt")
    return found


def test_every_offline_defence_is_a_case_or_says_why_not() -> None:
    assert set(OFFLINE_DEFENCES) == (set(OFFLINE_DEFENCES) & set(DEFENCES)) | set(ELSEWHERE)


@pytest.mark.parametrize("name", DEFENCES)
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_two_ranks_and_micro_batches_make_the_step_of_one(
    name: str, zero_stage: int, outcomes: dict[int, Any]
) -> None:
    whole = outcomes[1][name, 0]
    for found in (outcomes[1][name, zero_stage], outcomes[2][name, zero_stage]):
        for ours, expected in zip(found["metrics"], whole["metrics"], strict=True):
            assert ours.keys() == expected.keys()
            for key, value in expected.items():
                assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
        for key, weight in whole["weights"].items():
            torch.testing.assert_close(found["weights"][key], weight, rtol=0, atol=2e-6)
