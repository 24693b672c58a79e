"""Two learner processes whose checkpoints are written while they train."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from resume_scene import Killed, Training, same

from rpa_ray.learner.aside import Aside
from rpa_ray.learner.ranks import Ranks

NUM_RANKS = 2
KILLED_AFTER = 3
STAGES = (1, 2, 3)
START = Aside.start

pytestmark = pytest.mark.timeout(600)


def start_and_end(aside: Aside) -> None:
    """Write before the next step, so that it is known after which step a checkpoint has a name."""
    START(aside)
    aside.wait()


def no_space(path: Path, content: Any) -> int:
    raise OSError(28, "No space left on device")


def run(folder: Path, *, zero_stage: int, seed: int = 1, killed_after: int | None = None) -> Any:
    """Train in a folder; return the outcome."""
    torch.manual_seed(seed)
    training = Training(folder, "ppo", Ranks.current(), zero_stage=zero_stage, bf16=True)
    training.run(killed_after=killed_after)
    return training.outcome()


def killed(folder: Path, zero_stage: int) -> list[str]:
    """Train in a folder up to the kill; return what checkpoints it leaves."""
    with pytest.raises(Killed):
        run(folder, zero_stage=zero_stage, killed_after=KILLED_AFTER)
    dist.barrier()
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def work(rank: int, folder: str) -> None:
    """Train with every stage, then with a rank that has no memory, then with one without disk."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=NUM_RANKS)
    found: dict[str, Any] = {}
    cost = "rpa_ray.learner.checkpoint_cost"
    for stage in STAGES:
        whole = run(Path(folder, f"whole-{stage}"), zero_stage=stage)
        own = Path(folder, f"killed-{stage}")
        with patch(f"{cost}.PROBE_BYTES", 1), patch.object(Aside, "start", start_and_end):
            found[f"left {stage}"] = killed(own, stage)
            found[f"same {stage}"] = same(run(own, zero_stage=stage, seed=99), whole)
    available = f"{cost}.available_memory_gib"
    with patch(f"{cost}.PROBE_BYTES", 1), patch(available, lambda: 0.0 if rank else 64.0):
        found["left without memory"] = killed(Path(folder, "memory"), 1)
    with (
        patch(f"{cost}.PROBE_BYTES", 1),
        patch.object(Path, "write_bytes", no_space if rank else Path.write_bytes),
        pytest.raises(OSError, match="must be written whole by every rank") as error,
    ):
        run(Path(folder, "disk"), zero_stage=1)
    found["error"] = str(error.value)
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each rank met."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (str(folder),), NUM_RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(NUM_RANKS)]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_ranks_end_as_those_that_were_not(stage: int, found: list[dict[str, Any]]) -> None:
    for rank in found:
        # That after step 2 was written and gets its name at the end of step 3.
        assert rank[f"left {stage}"] == [".step_000003", "step_000002"]
        assert rank[f"same {stage}"]


def test_all_ranks_write_at_once_where_one_has_no_memory(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["left without memory"] == ["step_000002", "step_000003"]


def test_all_ranks_end_where_one_cannot_write(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert "got OSError: [Errno 28] No space left on device." in rank["error"]
