"""Many experiments on one warm cluster: make models once, run cells, write the summary."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import yaml

from rpa_ray.campaign.attacked_weights import delete_attacked_weights, held
from rpa_ray.campaign.cell_pools import pools_apart, seats_of
from rpa_ray.campaign.groups import STORAGE_PREFIX, Background, RankGroup, make_room, work_through
from rpa_ray.campaign.growing import Growing
from rpa_ray.campaign.job_state import JobState
from rpa_ray.campaign.manifest import manifest
from rpa_ray.campaign.progress import Expected
from rpa_ray.campaign.queue import JobQueue, ask
from rpa_ray.campaign.ranks import Work, set_train_environment
from rpa_ray.campaign.room import Room
from rpa_ray.campaign.startup import Startup
from rpa_ray.campaign.summary import record, worst_checks
from rpa_ray.cluster.address import cluster_to_join
from rpa_ray.cluster.joined import Places, find_room
from rpa_ray.cluster.nodes import driver_node, only_on
from rpa_ray.cluster.resources import num_model_threads
from rpa_ray.cluster.session import ClusterNotStarted, ray_session
from rpa_ray.cluster.storage import require_shared
from rpa_ray.plan import LoadedConfig
from rpa_ray.plan.cells import PlannedCell
from rpa_ray.plan.checks.gpus import with_engine_share
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.recipes.to_make import Job
from rpa_ray.run_folder.files import write_json, write_text
from rpa_ray.run_folder.lock import exclusive
from rpa_ray.run_folder.names import (
    CHECKS,
    CONFIG,
    EVALUATION,
    LOCK,
    LOSSES,
    MANIFEST,
    SUMMARY,
    SWEEP,
)
from rpa_ray.run_folder.outcome import read_outcome

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The one written in C takes a part of the time."""


class View(Protocol):
    """Shows how far a campaign is."""

    def expect(self, jobs: Mapping[str, Expected], num_at_once: int) -> None:
        """Take what will be done, by the name of the job, and how many jobs side by side."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    def show(self, jobs: Sequence[JobState]) -> None:
        """Show how far the jobs are that have begun."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Releases:
    """What decides when a cell may begin, and whether it goes on after a look."""

    start: Callable[[Any, Growing], Background]
    """Starts what releases the cells, which a queue holds until then, and may add some."""
    is_judged: bool = False
    """Whether it says at each look whether a cell goes on."""


class CampaignFailed(RuntimeError):
    """The ranks ended before every cell was run."""


def run_campaign(
    plan: Plan, *, view: View, command: str, releases: Releases | None = None
) -> list[dict[str, Any]]:
    """Run what is not done yet; return the summary's records.

    Cells that were run to an end with the same settings are read back. An interrupted campaign
    continues with the same command: cells that had begun from their last checkpoint. ``releases``
    decides when each cell may begin; without it, as soon as there is room.

    Interrupted or failed, it leaves a summary of the cells that have an outcome; an interrupted
    sweep leaves none.

    Raises:
        CampaignFailed: Ray did not start, or ranks could not be kept at work; finished cells are in
            the summary.
        FolderInUse: another run writes to the same folder.
    """
    config, output = plan.config, plan.output
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output / LOCK):
        with held(plan) as hold:
            if not plan.is_current():
                plan = make_plan(config, output, CampaignInputs(plan.cache))
            for cell in plan.cells:
                if not cell.done:
                    _begin_folder(plan, cell, command)
            growing = Growing(
                plan, expect=view.expect, begin=partial(_begin_folder, command=command), hold=hold
            )
            try:
                failure = _run(growing, view, releases) if plan.todo or config.num_undrawn else ""
            except ClusterNotStarted as error:
                raise CampaignFailed(str(error)) from None
            except KeyboardInterrupt:
                if config.sweep is None:
                    _write_results(config, _with_outcome(plan.cells), output)
                raise
        plan = growing.plan
        delete_attacked_weights(plan, view.say)
        cells = _with_outcome(plan.cells) if failure else plan.cells
        records = _write_results(config, cells, output)
    if failure:
        raise CampaignFailed(
            f"the learner ranks must finish every cell, got:\n{failure}\n"
            f"Finished cells are kept in {output}; the same command runs the others."
        )
    return records


def _with_outcome(planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    return [cell for cell in planned if read_outcome(cell.folder) is not None]


def _write_results(
    config: LoadedConfig, cells: Sequence[PlannedCell], output: Path
) -> list[dict[str, Any]]:
    """Write what is known of the cells; return the summary's records."""
    records = [record(cell) for cell in cells]
    write_json(output / SUMMARY, records)
    if config.sweep is not None:
        write_json(output / SWEEP, config.sweep.model_dump(mode="json"))
    else:
        (output / SWEEP).unlink(missing_ok=True)
    write_json(output / CHECKS, worst_checks(cells))
    return records


def _begin_folder(plan: Plan, cell: PlannedCell, command: str) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    # A failure of an earlier run: ranks take a finished cell for one of this run's.
    (cell.folder / EVALUATION).unlink(missing_ok=True)
    text = yaml.dump(cell.settings.to_yaml_dict(), Dumper=_Dumper, sort_keys=False)
    write_text(cell.folder / CONFIG, text)
    write_json(cell.folder / MANIFEST, manifest(plan.inputs.of(cell.settings), command))


def _run(growing: Growing, view: View, releases: Releases | None) -> str:
    """Do the work; return what ended it early, nothing where all went well."""
    plan = growing.plan
    settings, output = plan.cells[0].settings, plan.output
    for left_over in output.glob(f"{STORAGE_PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    set_train_environment()
    groups: list[RankGroup] = []
    releasing: list[Background] = []
    started = time.monotonic()
    view.say("starting the cluster and its workers")
    with ray_session(settings.cluster.address, view.say):
        view.say(f"cluster up after {time.monotonic() - started:.0f} s")
        places = Places(num_cells=plan.num_at_once)
        if cluster_to_join(settings.cluster.address) is not None:
            # First, since a node that was lost is known once it was asked.
            folders = {"--output": output, "RPA_RAY_CACHE": plan.cache}
            num_nodes = require_shared(folders, settings.cluster.timeout_s)
            view.say(f"results and models lie on storage that all {num_nodes} nodes share")
            num_cells = plan.num_at_once if settings.cluster.parallel_cells else len(plan.todo)
            places = find_room(settings, num_cells, view.say)
        queue = _queue_of(plan, releases)
        try:
            works = [
                _work_of(plan, growing.jobs, places, i, queue) for i in range(places.num_cells)
            ]
            room = Room(settings.cluster, len(works))
            told = _diary(output / LOSSES)
            groups = [RankGroup(work, room, output, told) for work in works]
            releasing = [releases.start(queue, growing)] if releases is not None else []
            startup = _startup(works, view.say)

            def look() -> None:
                startup.look(ask(queue, "groups"))
                states = ask(queue, "jobs")
                view.show(states)
                growing.clock.look(states, view.say)
                room.tell(view.say)
                make_room(groups, room)

            return work_through(groups, look, partial(ask, queue, "num_waiting"), releasing)
        finally:
            for watched in [*groups, *releasing]:
                watched.stop()


def _queue_of(plan: Plan, releases: Releases | None) -> Any:
    """Return the queue of all jobs, an actor; cells are held where something releases them."""
    held = [cell.name for cell in plan.todo] if releases is not None else []
    # With the driver, so that no other node can take the campaign along when it is lost.
    here = only_on(driver_node())
    queue: Any = ray.remote(JobQueue).options(num_cpus=0, scheduling_strategy=here)
    return queue.remote(
        plan.needs,
        held,
        is_open=plan.config.num_undrawn > 0,
        is_judged=releases is not None and releases.is_judged,
    )


def _startup(works: Sequence[Work], say: Callable[[str], None]) -> Startup:
    """Return what tells of the workers and ranks of every group once they are up."""
    of = {work.group: f" of group {work.group}" * (len(works) > 1) for work in works}
    return Startup(
        {
            f"{name}{of[work.group]}": answer
            for work in works
            if work.pools is not None
            for pool in (work.pools.scorers, work.pools.rollouts)
            for name, answer in pool.coming_up().items()
        },
        {work.group: f"ranks{of[work.group]}" for work in works},
        say,
    )


def _work_of(plan: Plan, jobs: Mapping[str, Job], places: Places, group: int, queue: Any) -> Work:
    """Return what one group of ranks is given; warm workers of its own are where they lie apart."""
    cluster = with_engine_share(plan.cells[0].settings.cluster, plan.all_inputs)
    seats = seats_of(places.placed, group, places.node_ids)
    return Work(
        group=group,
        jobs=jobs,
        queue=queue,
        node_ids=[seat.node_id for seat in seats.get("rank", ())],
        pools=None if cluster.is_colocated else pools_apart(cluster, seats),
        cache=plan.cache.resolve(),
        cluster=cluster,
        num_model_threads=num_model_threads(cluster, places.num_cells),
    )


def _diary(path: Path) -> Callable[[str], None]:
    """Return what appends a line with the time to a file."""

    def told(text: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")

    return told
