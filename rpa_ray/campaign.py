"""Many experiments on one warm cluster: make models once, run cells, write the summary."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import yaml

from rpa_ray.actors.board import Board, JobState
from rpa_ray.actors.pools import create_rollout_pool, create_scorer_pool
from rpa_ray.cell_models import cell_models
from rpa_ray.cells import PlannedCell, plan_cells, record, worst_checks
from rpa_ray.config import LoadedConfig, with_absolute_paths
from rpa_ray.jobs import Cell, ModelJob
from rpa_ray.manifest import manifest
from rpa_ray.metrics import write_json
from rpa_ray.recipe import in_order

Watch = Callable[[list[JobState]], None]


class CampaignFailed(RuntimeError):
    """The ranks ended before every cell was run."""


def run_campaign(
    config: LoadedConfig, output: Path, cache: Path, *, watch: Watch, command: str
) -> list[dict[str, Any]]:
    """Run what is not done yet; return the summary's records.

    Cells that were run to an end with the same settings are read back. An interrupted campaign
    continues with the same command at the first unfinished cell.

    Raises:
        CampaignFailed: the worker group died; finished cells are in the summary.
    """
    from rpa_ray.actors.train import set_train_environment

    planned = plan_cells(config, output)
    todo = [cell for cell in planned if not cell.done]
    for cell in todo:
        cell.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(cell.settings.to_yaml_dict(), sort_keys=False)
        (cell.folder / "config.yaml").write_text(text, encoding="utf-8")
        write_json(cell.folder / "manifest.json", manifest(cell.settings, cache, command))
    failure = ""
    if todo:
        set_train_environment()
        failure = _run(todo, output, cache, watch)
    records = [record(cell) for cell in planned]
    write_json(output / "summary.json", records)
    write_json(output / "checks.json", worst_checks(planned))
    if failure:
        raise CampaignFailed(
            f"the learner ranks must finish every cell, got:\n{failure}\n"
            f"Finished cells are kept in {output}; the same command runs the others."
        )
    return records


def _run(todo: Sequence[PlannedCell], output: Path, cache: Path, watch: Watch) -> str:
    """Do the work; return what ended it early, nothing where all went well."""
    from rpa_ray.actors.train import Work, run_work

    cluster = todo[0].settings.cluster
    cells = [
        Cell(name=c.name, settings=with_absolute_paths(c.settings), folder=c.folder.resolve())
        for c in todo
    ]
    jobs: dict[str, ModelJob] = {}
    for cell in cells:
        for recipe in in_order(cell_models(cell.settings, cache).recipes(), cache):
            jobs.setdefault(recipe.key(), ModelJob(recipe=recipe, data=cell.settings.data))
    with ray_session(cluster.address):
        board: Any = ray.remote(Board).options(num_cpus=0).remote()
        work = Work(
            models=tuple(jobs.values()),
            cells=tuple(cells),
            rollouts=create_rollout_pool(
                cluster.num_rollout_workers,
                num_cpus=cluster.cpus_per_rollout_worker,
                num_gpus=cluster.gpus_per_rollout_worker,
                num_threads=cluster.threads_per_process,
                time_limit_s=cluster.timeout_s,
            ),
            scorers=create_scorer_pool(
                cluster.num_scorer_workers,
                num_cpus=cluster.cpus_per_scorer_worker,
                num_gpus=cluster.gpus_per_scorer_worker,
                num_threads=cluster.threads_per_process,
                time_limit_s=cluster.timeout_s,
            ),
            board=board,
            cache=cache.resolve(),
            cluster=cluster,
        )
        with _watching(board, watch), TemporaryDirectory(prefix=".train-", dir=output) as storage:
            return run_work(work, storage=Path(storage))


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster of ``address`` or RAY_ADDRESS, or start one on this machine for the time.

    A cluster that happens to run here is not joined unasked: it may be somebody's test.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _watching(board: Any, watch: Watch) -> Iterator[None]:
    """Call ``watch`` with the board's state twice a second until the block ends."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.5):
            watch(ray.get(board.jobs.remote()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        watch(ray.get(board.jobs.remote()))
