"""Two learner processes that are killed go on as if they had not been, by attack and ZeRO stage."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from resume_scene import BATCH_SIZE, NUM_STEPS, Killed, Training, same

from rpa_ray.learner.ranks import Ranks

NUM_RANKS = 2
KILLED_AFTER = 3
CASES = [
    *(("ppo", stage, "none") for stage in (1, 2, 3)),
    *(("ppo", stage, "refusal_loss") for stage in (2, 3)),
    *(("ppo", stage, "lisa") for stage in (1, 3)),
    ("ppo", 3, "random_anchor"),
    ("ppo", 2, "kl_safe_ref"),
    ("ppo", 3, "safegrad"),
    ("sft", 3, "token_constrained"),
    ("ppo", 2, "lisa_in_two_states"),
    ("ppo", 3, "procon"),
    ("ppo", 3, "security_vectors"),
    ("grpo", 3, "none"),
    *(("dpo", stage, "none") for stage in (1, 3)),
    ("ppo_with_lora", 3, "none"),
]

pytestmark = pytest.mark.timeout(1500)


def work(rank: int, folder: str, phase: str) -> None:
    """Train every case whole, or up to the kill, or from there on."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    rendezvous = f"file://{folder}/rendezvous-{phase}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=NUM_RANKS)
    outcomes: dict[Any, Any] = {}
    for case in CASES:
        attack, stage, defence = case
        name = "whole" if phase == "whole" else "killed"
        torch.manual_seed(99 if phase == "resumed" else rank)
        training = Training(
            Path(folder, f"{name}-{attack}-{stage}-{defence}"),
            attack,
            Ranks.current(),
            zero_stage=stage,
            defence=defence,
            bf16=True,
        )
        try:
            training.run(killed_after=KILLED_AFTER if phase == "killed" else None)
        except Killed:
            continue
        outcomes[case] = training.outcome() | {
            "used": training.used,
            "num_reference_passes": training.num_reference_passes,
        }
    torch.save(outcomes, Path(folder, f"{phase}{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    # Ranks are forked from one process that has imported everything: imports are most of the time.
    multiprocessing.set_forkserver_preload(["rpa_ray.ops.openrlhf", "deepspeed", "transformers"])
    for phase in ("whole", "killed", "resumed"):
        mp.start_processes(work, (str(folder), phase), NUM_RANKS, start_method="forkserver")
        found[phase] = [torch.load(folder / f"{phase}{rank}.pt") for rank in range(NUM_RANKS)]
    return found


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_were_killed_end_as_those_that_were_not(
    case: tuple[str, int, str], outcomes: dict[str, list[Any]]
) -> None:
    assert outcomes["killed"] == [{}, {}]
    for rank in range(NUM_RANKS):
        whole, resumed = (dict(outcomes[phase][rank][case]) for phase in ("whole", "resumed"))
        # Step 3 was done and not saved: it is repeated.
        assert resumed.pop("used") == whole.pop("used")[KILLED_AFTER * BATCH_SIZE // NUM_RANKS :]
        del resumed["num_reference_passes"], whole["num_reference_passes"]
        assert same(resumed, whole)


@pytest.mark.parametrize("case", CASES)
def test_the_ranks_use_every_prompt_or_pair_once_between_them(
    case: tuple[str, int, str], outcomes: dict[str, list[Any]]
) -> None:
    whole = [outcomes["whole"][rank][case] for rank in range(NUM_RANKS)]
    assert [found["num_steps"] for found in whole] == [NUM_STEPS] * NUM_RANKS
    used = [found["used"] for found in whole]
    assert len(used[0]) == len(used[1])
    if case[0] not in ("dpo", "sft"):  # rows of a data set come in an order of their own
        share = BATCH_SIZE // NUM_RANKS
        steps = range(NUM_STEPS)
        assert used == [
            [f"p{BATCH_SIZE * i + share * rank + j}" for i in steps for j in range(share)]
            for rank in range(NUM_RANKS)
        ]
    assert sorted(used[0] + used[1]) == sorted(f"p{i}" for i in range(NUM_STEPS * BATCH_SIZE))


@pytest.mark.parametrize("stage", [1, 3])
def test_a_resumed_rank_asks_the_reference_nothing(
    stage: int, outcomes: dict[str, list[Any]]
) -> None:
    # 40 answers shared by two ranks, 32 at once
    case = ("dpo", stage, "none")
    for rank in range(NUM_RANKS):
        assert outcomes["whole"][rank][case]["num_reference_passes"] == 1
        assert outcomes["resumed"][rank][case]["num_reference_passes"] == 0
