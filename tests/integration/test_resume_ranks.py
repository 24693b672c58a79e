"""Two learner processes that are killed go on as if they had not been, under each ZeRO stage."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from resume_scene import Killed, Training, same

from rpa_ray.learner.ranks import Ranks

NUM_RANKS = 2
KILLED_AFTER = 3
CASES = [(stage, name) for stage in (1, 2, 3) for name in ("none", "refusal_loss")]


def work(rank: int, folder: str, phase: str) -> None:
    """Train every case whole, or up to the kill, or from there on."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    rendezvous = f"file://{folder}/rendezvous-{phase}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=NUM_RANKS)
    outcomes: dict[Any, Any] = {}
    for stage, defence in CASES:
        name = "whole" if phase == "whole" else "killed"
        torch.manual_seed(99 if phase == "resumed" else rank)
        training = Training(
            Path(folder, f"{name}-{stage}-{defence}"),
            defence,
            Ranks.current(),
            zero_stage=stage,
            bf16=True,
        )
        try:
            training.run(killed_after=KILLED_AFTER if phase == "killed" else None)
        except Killed:
            continue
        outcomes[stage, defence] = training.outcome() | {"used": training.used}
    torch.save(outcomes, Path(folder, f"{phase}{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for phase in ("whole", "killed", "resumed"):
        mp.spawn(work, (str(folder), phase), nprocs=NUM_RANKS)
        found[phase] = [torch.load(folder / f"{phase}{rank}.pt") for rank in range(NUM_RANKS)]
    return found


@pytest.mark.parametrize(("stage", "defence"), CASES)
def test_ranks_that_were_killed_end_as_those_that_were_not(
    stage: int, defence: str, outcomes: dict[str, list[Any]]
) -> None:
    assert outcomes["killed"] == [{}, {}]
    for rank in range(NUM_RANKS):
        whole = outcomes["whole"][rank][stage, defence]
        resumed = outcomes["resumed"][rank][stage, defence]
        assert whole.pop("used") == [f"p{4 * i + 2 * rank + j}" for i in range(5) for j in (0, 1)]
        # Step 3 was done and not saved: it is repeated.
        assert resumed.pop("used") == [f"p{4 * i + 2 * rank + j}" for i in (3, 4) for j in (0, 1)]
        assert same(resumed, whole)
