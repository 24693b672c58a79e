"""Whether there is room: folders to write, CPUs, GPUs and memory, and the ranks that began."""

import shutil
import tempfile
from pathlib import Path

from rpa_ray.cluster.address import cluster_to_join
from rpa_ray.cluster.hardware import NativeDtype, native_dtype
from rpa_ray.cluster.placement import Placed, num_that_fit
from rpa_ray.cluster.resources import (
    gpus_asked,
    local_cpus,
    local_gpus,
    local_memory_gib,
    memory_asked_gib,
    nodes_of,
    require_resources,
)
from rpa_ray.config import CampaignSettings, ConfigError, ExperimentSettings
from rpa_ray.learner.checkpoints import check_fits, latest_checkpoint
from rpa_ray.run_folder.names import CHECKPOINTS

MIN_FREE_BYTES = 500 * 2**20


def check_output(folder: Path, option: str = "--output", gib: float = 0.0) -> None:
    """Refuse a folder that cannot be written or has no room; makes no folder itself.

    ``gib`` is what will be written to it beside the small files of every run.

    Raises:
        ConfigError: it or the folder it would be made in cannot be written or is nearly full.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise ConfigError(
            option,
            "be a folder that can be written",
            str(folder),
            f"{there}: {error.strerror}. Name another folder.",
        ) from None
    free = shutil.disk_usage(there).free
    needed = MIN_FREE_BYTES + int(gib * 2**30)
    if free < needed:
        told = f", {gib:.0f} GiB of it for what is made" if gib >= 1 else ""
        raise ConfigError(
            option,
            f"lie on a disk with {needed >> 20:,} MiB free{told}",
            f"{free >> 20:,} MiB at {there}",
            "Free space or name another folder.",
        )


def check_checkpoints(run_folder: Path, settings: ExperimentSettings) -> None:
    """Refuse to go on with an interrupted run on other ranks than those that began it.

    Raises:
        ConfigError: Number of ranks or ZeRO stage differ from those of the run's checkpoint.
    """
    checkpoint = latest_checkpoint(run_folder / CHECKPOINTS)
    if checkpoint is not None:
        cluster = settings.cluster
        check_fits(checkpoint, num_ranks=cluster.num_ranks, zero_stage=cluster.zero_stage)


def check_placement(settings: ExperimentSettings, num_cells: int = 1) -> None:
    """Refuse a cluster on this machine that asks for more than there is.

    Ray would wait for ever for a CPU or a GPU that there is not. A cluster that is joined
    (``cluster.address`` or RAY_ADDRESS) is judged once it is. ``num_cells`` are those of the
    campaign.

    Raises:
        ConfigError: with the sum that was asked and what there is.
    """
    if cluster_to_join(settings.cluster.address) is not None:
        return
    here = {"CPU": float(local_cpus()), "GPU": float(local_gpus())}
    at_once = _at_once(settings, num_cells)
    require_resources(settings, [here], "this machine", at_once)
    memory, there = at_once * memory_asked_gib(settings), local_memory_gib()
    if memory > there:
        raise ConfigError(
            "cluster",
            f"ask for at most the {there:.1f} GiB memory of this machine",
            f"about {memory:.1f} GiB",
            "Take fewer processes or a smaller model.",
        )


def placed_on_paper(settings: ExperimentSettings, num_cells: int) -> list[Placed]:
    """Return where the processes go on the machines that ``cluster.machines`` describes.

    Args:
        settings: Any cell; all share ``cluster``.
        num_cells: Of the campaign: where ``cluster.parallel_cells`` is not set, as many of them run
            side by side as the GPUs have room for.

    Raises:
        ConfigError: with the sum that was asked and what there is, or with the worker that fits no
            node.
    """
    cluster = settings.cluster
    assert cluster.machines is not None
    nodes = nodes_of(cluster.machines)
    return require_resources(settings, nodes, "cluster.machines", _at_once(settings, num_cells))


def _at_once(settings: ExperimentSettings, num_cells: int) -> int:
    """Return how many of a campaign's cells run side by side at least."""
    cluster = settings.cluster
    if cluster.parallel_cells is None and cluster.machines is not None and gpus_asked(settings):
        return max(1, num_that_fit(cluster, nodes_of(cluster.machines), num_cells))
    return cluster.parallel_cells or 1


def native_dtype_here(campaign: CampaignSettings) -> NativeDtype | None:
    """Return what this machine computes; None where the ranks are on a cluster that is joined."""
    cluster = campaign.cells[0].cluster
    if cluster_to_join(cluster.address) is not None:
        return None
    return native_dtype(on_gpu=cluster.gpus_per_rank > 0)
