"""The learner ranks: a Ray Train worker group that works through a list of jobs."""

import logging
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpa_ray.actors.board import Board, BoardProgress
from rpa_ray.actors.pools import RolloutPool, ScorerPool
from rpa_ray.config import ClusterSettings
from rpa_ray.jobs import Cell, ModelJob
from rpa_ray.metrics import write_json

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from rpa_ray.workplace import Workplace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that the ranks are given: models to make first, then cells to run."""

    models: tuple[ModelJob, ...]
    cells: tuple[Cell, ...]
    rollouts: RolloutPool
    scorers: ScorerPool
    board: "ActorHandle[Board]"
    cache: Path
    cluster: ClusterSettings


def work(config: dict[str, Any]) -> None:
    """Do every job of ``config["work"]`` in order on this rank; the loop of a Ray Train worker."""
    import torch

    from rpa_ray.learner.ranks import Ranks
    from rpa_ray.model_job import make_model
    from rpa_ray.workplace import Workplace

    given: Work = config["work"]
    torch.set_num_threads(given.cluster.threads_per_rank_alone)
    ranks = Ranks.current()
    place = Workplace(
        ranks=ranks,
        rollouts=given.rollouts,
        scorers=given.scorers,
        cache=given.cache,
        cluster=given.cluster,
        progress=BoardProgress(given.board, enabled=ranks.is_main),
    )
    for model in given.models:
        make_model(model, place)
    torch.set_num_threads(given.cluster.threads_per_process)
    for cell in given.cells:
        _run_recorded(cell, place)


def _run_recorded(cell: Cell, place: "Workplace") -> None:
    """Run a cell; one that raises is recorded as failed and does not take the others along.

    With several ranks an error of one leaves the others inside a collective, so it ends the group.
    """
    from rpa_ray.experiment import run_experiment

    try:
        run_experiment(cell, place)
    except Exception as error:
        logger.exception("cell %s failed", cell.name)
        if place.ranks.is_main:
            write_json(
                cell.folder / "evaluation.json",
                {
                    "status": "failed",
                    "step_failed": None,
                    "reason": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                    "metrics": {},
                },
            )
        if place.ranks.size > 1:
            raise


def run_work(given: Work, *, storage: Path) -> str:
    """Start the worker group and wait until every job is done.

    Returns what ended the group early in its own words, nothing where all went well. Finished
    jobs keep their folders.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = given.cluster
    use_gpu = cluster.gpus_per_rank > 0
    resources = {"CPU": cluster.cpus_per_rank}
    if use_gpu:
        resources["GPU"] = cluster.gpus_per_rank
    trainer = TorchTrainer(
        work,
        train_loop_config={"work": given},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_ranks, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ranks",
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={  # type: ignore[call-arg]  # the second version of Ray Train has it
                "env_vars": {
                    "OMP_NUM_THREADS": str(cluster.threads_per_process),
                    "VLLM_LOGGING_LEVEL": "ERROR",
                }
            },
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return str(error)
    return ""


def set_train_environment() -> None:
    """Set what Ray Train reads from the driver's environment; call before ``ray.init``."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # How often the controller looks after its workers; its 2 s would delay every report.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
