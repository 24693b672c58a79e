"""Settings of where the work runs: machines, processes and what each of them reserves."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rpa_ray.config.base import Settings


class MachineSettings(Settings):
    """The machines of a cluster, all alike, for plans that are made elsewhere."""

    num_nodes: int = Field(1, ge=1)
    cpus_per_node: float = Field(gt=0)
    gib_per_node: float = Field(gt=0)
    """Main memory."""
    gpus_per_node: int = Field(0, ge=0)
    gib_per_gpu: float = Field(80.0, gt=0)
    """Memory of a GPU as it tells it, in GiB of 2**30 bytes."""


class ClusterSettings(Settings):
    """Where the work runs."""

    address: str | None = None
    """Ray address, ``auto`` for a cluster that runs here; None takes RAY_ADDRESS or starts one."""
    machines: MachineSettings | None = None
    """What `rpa-ray plan` places the work on, and whose memory bounds it; None: this machine."""
    num_ranks: int = Field(1, ge=1, le=4096)
    """Learner processes."""
    cpus_per_rank: float = Field(1.0, gt=0)
    gpus_per_rank: float = Field(0.0, ge=0)
    num_rollout_workers: int = Field(1, ge=1)
    cpus_per_rollout_worker: float = Field(0.5, ge=0)
    gpus_per_rollout_worker: float = Field(0.0, ge=0)
    num_scorer_workers: int = Field(1, ge=1)
    cpus_per_scorer_worker: float = Field(0.25, ge=0)
    gpus_per_scorer_worker: float = Field(0.0, ge=0)
    threads_per_process: int = Field(1, ge=1)
    """CPU threads of each rank, rollout and scoring process. They work at the same time: on two
    cores one thread each took 0.7 times the time of two, and other work on the machine makes
    threads of one process wait for each other."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows of one rank in one backward pass; None takes its whole part of the batch."""
    gradient_checkpointing: bool = False
    """Keep of each layer its input alone for the backward pass, which computes the layer once more:
    a step takes about a third longer, and the memory of one layer in place of all."""
    deepspeed: Path | None = Field(None, strict=False)
    """A DeepSpeed JSON whose keys win over ours."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest wait for one answer of a worker."""
    parallel_cells: int | None = Field(None, ge=1)
    """Cells of a campaign that run side by side, each with ranks and workers of its own; None takes
    as many as this machine has room for (one on a cluster that is joined)."""
    checkpoint_interval_s: float = Field(30.0, ge=0)
    """Least time between two checkpoints of a training; an interrupted one repeats at most what
    came after its last. More where checkpoints would hold it up for above 5 % of the time; 0 saves
    after every step, or once the one before is written."""
