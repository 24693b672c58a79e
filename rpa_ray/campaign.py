"""Many experiments on one warm cluster: make models once, run cells, write the summary."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import yaml

from rpa_ray.actors.board import Board, JobState
from rpa_ray.actors.pools import create_rollout_pool, create_scorer_pool
from rpa_ray.cell_models import cell_models
from rpa_ray.config import ExperimentSettings, LoadedConfig
from rpa_ray.jobs import Cell, ModelJob
from rpa_ray.manifest import manifest
from rpa_ray.metrics import write_json
from rpa_ray.recipe import in_order

Watch = Callable[[list[JobState]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """A cell with its folder and what tells it from its neighbours."""

    name: str
    settings: ExperimentSettings
    folder: Path
    params: dict[str, Any]
    done: bool
    """True where the same settings were run to an end before."""


class CampaignFailed(RuntimeError):
    """The ranks ended before every cell was run."""


def plan_cells(config: LoadedConfig, output: Path) -> list[PlannedCell]:
    """Return the cells of a config with names, folders and distinguishing parameters."""
    cells = config.campaign.cells
    flat = [_flatten(cell.to_yaml_dict()) for cell in cells]
    planned = []
    for settings, values in zip(cells, flat, strict=True):
        folder = output / cell_name(settings)
        planned.append(
            PlannedCell(
                name=folder.name,
                settings=settings,
                folder=folder,
                params={
                    key: value
                    for key, value in values.items()
                    if key not in _RECORD_KEYS and _tells_apart(key, value, flat, settings)
                },
                done=_is_done(folder, settings),
            )
        )
    return planned


def cell_name(settings: ExperimentSettings) -> str:
    """Return a readable folder name that two different cells never share."""
    digest = hashlib.sha256(json.dumps(_identity(settings), sort_keys=True).encode()).hexdigest()
    model = "".join(c if c.isalnum() else "-" for c in Path(settings.model.path).name)
    parts = [model, settings.attack.name, settings.defence.name, f"seed{settings.seed}", digest[:8]]
    return "_".join(parts)


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
    jobs: dict[str, ModelJob] = {}
    for cell in todo:
        for recipe in in_order(cell_models(cell.settings, cache).recipes(), cache):
            jobs.setdefault(recipe.key(), ModelJob(recipe=recipe, data=cell.settings.data))
    with ray_session(cluster.address):
        board: Any = ray.remote(Board).options(num_cpus=0).remote()
        work = Work(
            models=tuple(jobs.values()),
            cells=tuple(
                Cell(name=c.name, settings=c.settings, folder=c.folder.resolve()) for c in todo
            ),
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


def record(cell: PlannedCell) -> dict[str, Any]:
    """Return the summary record of a cell from its run folder."""
    settings = cell.settings
    path = cell.folder / "evaluation.json"
    outcome: dict[str, Any] = {"status": "failed", "step_failed": None, "metrics": {}}
    if path.is_file():
        outcome = json.loads(path.read_text(encoding="utf-8"))
    attacked = settings.attack.name != "none"
    return {
        "model": settings.model.path,
        "world": settings.data.world,
        "data": settings.data.name,
        "attack": settings.attack.name,
        "defence": settings.defence.name,
        "rho": settings.data.rho if attacked else None,
        "num_samples": settings.data.num_samples if attacked else 0,
        "params": cell.params,
        "seed": settings.seed,
        "status": outcome["status"],
        "step_failed": outcome["step_failed"],
        "run": cell.folder.name,
        "weights_sha256": outcome.get("weights_sha256"),
        "metrics": outcome["metrics"],
    }


def worst_checks(cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """Return the worst finding of each instrument check over all cells."""
    worst: dict[str, Any] = {}
    for cell in cells:
        path = cell.folder / "evaluation.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, check in found.get("checks", {}).items():
            sign = -1.0 if name == "reward_model_unflipped_accuracy" else 1.0
            if name not in worst or sign * check["mean"] < sign * worst[name]["mean"]:
                worst[name] = check
    return worst


_RECORD_KEYS = frozenset(
    {
        "model.path",
        "data.name",
        "data.world",
        "data.rho",
        "data.num_samples",
        "attack.name",
        "defence.name",
        "seed",
    }
)


def _tells_apart(
    key: str, value: Any, flat: Sequence[dict[str, Any]], cell: ExperimentSettings
) -> bool:
    """Return whether a setting differs between cells, or is a defence's and not its default."""
    if any(other.get(key, value) != value for other in flat):
        return True
    group, _, name = key.partition(".")
    return group == "defence" and type(cell.defence).model_fields[name].default != value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _identity(settings: ExperimentSettings) -> dict[str, Any]:
    """Return what decides a cell's result: everything but where it runs."""
    tree = settings.to_yaml_dict()
    del tree["cluster"]
    return tree


def _is_done(folder: Path, settings: ExperimentSettings) -> bool:
    path = folder / "evaluation.json"
    if not path.is_file():
        return False
    outcome = json.loads(path.read_text(encoding="utf-8"))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    del config["cluster"]
    return bool(outcome["status"] != "failed" and config == _identity(settings))
