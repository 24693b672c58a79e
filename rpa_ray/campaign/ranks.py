"""The learner ranks: a Ray Train worker group that works through a queue of jobs."""

import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rpa_ray.actors.environment import process_environment
from rpa_ray.actors.errors import UnusableRankError
from rpa_ray.actors.pools import RolloutPool, ScorerPool
from rpa_ray.campaign.queue import ASK_AGAIN, JobQueue, QueueProgress, ask
from rpa_ray.campaign.watchdog import Watchdog
from rpa_ray.cluster.address import cluster_to_join
from rpa_ray.config import ClusterSettings
from rpa_ray.recipes.to_make import Cell, Job, ModelJob, RefusalJob
from rpa_ray.run_folder.deletion import delete
from rpa_ray.run_folder.files import write_json
from rpa_ray.run_folder.lock import exclusive
from rpa_ray.run_folder.names import CHECKPOINTS, EVALUATION
from rpa_ray.run_folder.outcome import cause_of, outcome_status, ran_to_an_end, why_failed

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchConfig

    from rpa_ray.jobs.process import LearnerProcess
    from rpa_ray.learner.ranks import Ranks

LOCK_WAIT_S = 120.0
"""Longest wait for the ranks of an interrupted run to be gone from a folder."""
MODEL_LOCK_WAIT_S = 3600.0
"""Longest wait for another campaign that makes the same model or refusals."""
ASK_EVERY_S = 0.5
MAX_STARTS = 3
"""Tries to find room for a group, each of Ray Train's own limit (60 s)."""
COLLECTIVE_TIMEOUTS = 10
"""Worker time limits that a rank waits for another: one may be repeating a call that timed out."""
SILENT_TIMEOUTS = COLLECTIVE_TIMEOUTS + 1
"""Worker time limits that a rank may work on a job without a step, a stage or its end."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that one group of ranks is given."""

    group: int
    jobs: Mapping[str, Job]
    queue: "ActorHandle[JobQueue]"
    rollouts: RolloutPool
    scorers: ScorerPool
    cache: Path
    cluster: ClusterSettings
    num_model_threads: int
    """CPU threads of a rank that makes a model of rows: nobody generates or scores meanwhile."""

    def num_threads(self, job: Job) -> int:
        """Return the CPU threads of a rank that does a job."""
        if isinstance(job, ModelJob) and not job.recipe.scored_by:
            return self.num_model_threads
        return self.cluster.threads_per_process


def work(config: dict[str, Any]) -> None:
    """Do jobs of ``config["work"]`` on this rank until none is left; the loop of a Train worker.

    Under ZeRO 3 one job is all: DeepSpeed keeps the memory of a destroyed engine there.
    """
    import ray
    import torch

    from rpa_ray.jobs.process import LearnerProcess
    from rpa_ray.learner.ranks import Ranks

    given: Work = config["work"]
    ranks = Ranks.current()
    if ranks.is_main:
        ask(given.queue, "join", given.group, ray.get_runtime_context().current_actor)
    watchdog = Watchdog(silence_limit_s(given.cluster))
    progress = QueueProgress(given.queue, enabled=ranks.is_main, watchdog=watchdog)
    process = LearnerProcess(
        ranks=ranks,
        rollouts=given.rollouts,
        scorers=given.scorers,
        cache=given.cache,
        cluster=given.cluster,
        progress=progress,
        is_stopped=progress.is_stopped,
    )
    for job in _jobs(given, ranks):
        progress.begin(job.name)
        torch.set_num_threads(given.num_threads(job))
        try:
            status, why = _do(job, given, process, watchdog)
        except (TypeError, ValueError):  # so it would end on other ranks
            ask(given.queue, "forbid_retry", job.name)
            raise
        progress.end(job.name, status, why)


def _do(job: Job, given: Work, process: "LearnerProcess", watchdog: Watchdog) -> tuple[str, str]:
    """Do a job on this rank, alone among the ranks of other runs; return how it ended, and why."""
    from rpa_ray.jobs.model import make_model
    from rpa_ray.jobs.refusals import make_refusals

    ranks = process.ranks
    if isinstance(job, ModelJob):
        lock = given.cache / "checkpoints" / f".{job.recipe.folder(given.cache).name}.lock"
        with _alone(lock, MODEL_LOCK_WAIT_S, ranks), watchdog.watching():
            if not ranks.broadcast(job.recipe.folder(given.cache).is_dir()):
                make_model(job, process)
    elif isinstance(job, RefusalJob):
        lock = given.cache / "checkpoints" / f".{job.refusals.folder(given.cache).name}.lock"
        with _alone(lock, MODEL_LOCK_WAIT_S, ranks), watchdog.watching():
            if not ranks.broadcast(job.refusals.is_made(given.cache)):
                make_refusals(job, process)
    else:
        with _alone(job.folder / ".ranks.lock", LOCK_WAIT_S, ranks), watchdog.watching():
            _run_recorded(job, process)
        return outcome_status(job.folder), why_failed(job.folder)
    return "ok", ""


def silence_limit_s(cluster: ClusterSettings) -> float:
    """Return the seconds after which a rank that tells nothing of its job is ended."""
    return SILENT_TIMEOUTS * cluster.timeout_s


def _jobs(given: Work, ranks: "Ranks") -> Iterator[Job]:
    """Yield the same jobs on every rank."""
    while True:
        name = ranks.broadcast(ask(given.queue, "take", given.group) if ranks.is_main else None)
        if name is None:
            return
        if name == ASK_AGAIN:
            time.sleep(ASK_EVERY_S)
            continue
        job = given.jobs.get(name)
        yield ask(given.queue, "added", name) if job is None else job
        if given.cluster.zero_stage == 3:
            if ranks.is_main:
                ask(given.queue, "finish", given.group)
            return


@contextmanager
def _alone(lock: Path, wait_s: float, ranks: "Ranks") -> Iterator[None]:
    """Have every rank wait until no ranks of another run work on the same."""
    with exclusive(lock, wait_s=wait_s) if ranks.is_main else nullcontext():
        ranks.barrier()
        yield


def _run_recorded(cell: Cell, process: "LearnerProcess") -> None:
    """Run a cell; one that raises is recorded as failed and does not take the others along.

    With several ranks an error of one leaves the others inside a collective, so it ends the group,
    and the cell is tried again by the next where that may end otherwise. So does one after which
    the process cannot be used.
    """
    from rpa_ray.jobs.experiment import run_experiment

    if process.ranks.broadcast(
        ran_to_an_end(cell.folder)
    ):  # ranks died after its end, before the next
        if process.ranks.is_main:
            delete(cell.folder / CHECKPOINTS)
        return
    try:
        run_experiment(cell, process)
    except Exception as error:
        logger.exception("cell %s failed", cell.name)
        if process.ranks.size > 1 or isinstance(error, UnusableRankError):
            raise
        record_failure(cell, f"{type(error).__name__}: {error}", traceback.format_exc())


def record_failure(cell: Cell, reason: str, details: str) -> None:
    """Write that a cell failed into its folder; its other files stay."""
    write_json(
        cell.folder / EVALUATION,
        {
            "status": "failed",
            "step_failed": None,
            "reason": reason,
            "traceback": details,
            "metrics": {},
        },
    )


def run_work(given: Work, *, storage: Path) -> str:
    """Start a group of ranks and wait until it finds no job in the queue.

    Returns what ended the group early, the cause before the rest; nothing where all went well.
    """
    from ray.train import (
        ControllerError,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    cluster = given.cluster
    use_gpu = cluster.gpus_per_rank > 0
    resources = {"CPU": cluster.cpus_per_rank}
    if use_gpu:
        resources["GPU"] = cluster.gpus_per_rank
    with TemporaryDirectory(prefix="rpa-ray-ranks-") as meeting:
        trainer = TorchTrainer(
            work,
            train_loop_config={"work": given},
            torch_config=_torch_config(cluster, use_gpu, meeting),
            scaling_config=ScalingConfig(
                num_workers=cluster.num_ranks, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"ranks-{given.group}",
                storage_path=str(storage.resolve()),
                # Ray Train would start a group again for ever that it finds no room for.
                # The types are those of the first version of Ray Train.
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=0,
                    controller_failure_limit=MAX_STARTS - 1,
                ),
                worker_runtime_env={
                    "env_vars": {
                        **process_environment(
                            num_threads=cluster.threads_per_process, num_gpus=cluster.gpus_per_rank
                        ),
                        "VLLM_LOGGING_LEVEL": "ERROR",
                    }
                },
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            is_started = not isinstance(error, ControllerError)
            asked = "" if is_started else f"; asked for {cluster.num_ranks} x {resources}"
            return f"{_cause(error)}{asked}\n{error}"
    return ""


def _cause(error: "TrainingFailedError") -> str:
    """Return in one line what the first rank that failed says of it."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return cause_of(str(error).partition("\n")[2]) or cause_of(str(error))
    first = failures[min(failures)]
    return f"{type(first).__name__}: {cause_of(str(first))}"


def _torch_config(cluster: ClusterSettings, use_gpu: bool, meeting: str) -> "TorchConfig":
    from ray.train.torch import TorchConfig

    from rpa_ray.campaign.process_group import FileTorchConfig

    backend = "nccl" if use_gpu else "gloo"
    timeout_s = int(COLLECTIVE_TIMEOUTS * cluster.timeout_s)
    if cluster_to_join(cluster.address) is not None:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return FileTorchConfig(backend=backend, timeout_s=timeout_s, folder=meeting)


def set_train_environment() -> None:
    """Set what Ray Train reads from the driver's environment; call before ``ray.init``."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # How often the controller looks after its workers; its 2 s would delay every report.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # No record of every call: a cluster of our own would keep 50 kB a step of it, read by nobody.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
