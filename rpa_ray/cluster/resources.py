"""What a cell's processes reserve and what this machine has: CPUs, GPUs, memory."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from rpa_ray.cluster.address import cluster_to_join
from rpa_ray.cluster.placement import Placed, Resources, num_that_fit, place, workers_of
from rpa_ray.config import ClusterSettings, ConfigError, ExperimentSettings, MachineSettings

GIB_A_PROCESS = 2.0
"""Memory of a rank or a worker beside its weights: libraries, buffers, 1M models; rough."""
BYTES_A_PARAMETER_OF_A_RANK = 6
"""bf16 weights and gradients, and the frozen original, on every rank."""
BYTES_A_PARAMETER_OF_ALL_RANKS = 12
"""fp32 masters and Adam's two moments, cut over the ranks by ZeRO."""
BYTES_A_PARAMETER_OF_A_ROLLOUT_WORKER = 2
MIN_CPUS_OF_A_CELL = 1.0
"""A cell keeps about one core busy, whatever it reserves."""
CGROUP = Path("/sys/fs/cgroup")


def parallel_cells(cells: Sequence[ExperimentSettings]) -> int:
    """Return how many cells of a campaign run side by side.

    Of a cluster that is joined, and not described in ``cluster.machines``, it is one until it is
    known what is free there.
    """
    cluster = cells[0].cluster
    if cluster.parallel_cells is not None:
        return min(cluster.parallel_cells, len(cells))
    if cluster.machines is not None and gpus_asked(cells[0]):
        return max(1, num_that_fit(cluster, nodes_of(cluster.machines), len(cells)))
    if cluster_to_join(cluster.address) is not None:
        return 1
    fits = [len(cells), int(local_cpus() / max(cpus_asked(cells[0]), MIN_CPUS_OF_A_CELL))]
    if gpus_asked(cells[0]):
        fits.append(int(local_gpus() / gpus_asked(cells[0])))
    fits.append(int(local_memory_gib() / max(map(memory_asked_gib, cells))))
    return max(1, min(fits))


def nodes_of(machines: MachineSettings) -> list[Resources]:
    """Return what each node of some machines has."""
    node = {"CPU": machines.cpus_per_node, "GPU": float(machines.gpus_per_node)}
    return [node] * machines.num_nodes


def num_model_threads(cluster: ClusterSettings, num_groups: int) -> int:
    """Return the CPU threads of a rank that makes a model, beside ``num_groups - 1`` other groups.

    On this machine they share all cores; those of a cluster that is joined are not known.
    """
    if cluster_to_join(cluster.address) is not None:
        return cluster.threads_per_process
    return max(cluster.threads_per_process, local_cpus() // (num_groups * cluster.num_ranks))


def require_resources(
    settings: ExperimentSettings, nodes: Sequence[Resources], whose: str, num_cells: int
) -> list[Placed]:
    """Return the place of every process; refuse a config whose processes do not fit the nodes.

    Args:
        settings: Any cell; all share ``cluster``.
        nodes: What each node has, by Ray's names ``CPU`` and ``GPU``.
        whose: The owner of the nodes in words.
        num_cells: How many cells run side by side.

    Raises:
        ConfigError: with the sum that was asked and what there is, or with the worker that fits no
            node.
    """
    for unit, each in (("CPU", cpus_asked(settings)), ("GPU", gpus_asked(settings))):
        asked, there = num_cells * each, sum(node.get(unit, 0.0) for node in nodes)
        if asked > there:
            raise ConfigError(
                "cluster",
                f"ask for at most the {there:g} {unit}s of {whose}",
                f"{asked:g} {unit}s",
                "Lower num_ranks, num_rollout_workers, num_scorer_workers, their "
                f"{unit.lower()}s_per_* or parallel_cells.",
            )
    return place(settings.cluster, nodes, whose, num_cells)


def cpus_asked(settings: ExperimentSettings) -> float:
    """Return the CPUs that ranks, rollout and scoring workers reserve together."""
    return sum(worker.cpus for worker in workers_of(settings.cluster))


def gpus_asked(settings: ExperimentSettings) -> float:
    """Return the GPUs that ranks, rollout and scoring workers reserve together."""
    return sum(worker.gpus for worker in workers_of(settings.cluster))


def memory_asked_gib(settings: ExperimentSettings) -> float:
    """Return about how much memory the processes fill on a machine without GPUs, in GiB.

    Weights count where ``model.path`` is a folder; those of the embedded models, a few MiB, and of
    a Hub id, unknown yet, do not, nor do the weights on GPUs.
    """
    cluster = settings.cluster
    processes = cluster.num_ranks + cluster.num_rollout_workers + cluster.num_scorer_workers
    if gpus_asked(settings):
        return processes * GIB_A_PROCESS
    bytes_a_parameter = (
        cluster.num_ranks * BYTES_A_PARAMETER_OF_A_RANK
        + BYTES_A_PARAMETER_OF_ALL_RANKS
        + cluster.num_rollout_workers * BYTES_A_PARAMETER_OF_A_ROLLOUT_WORKER
    )
    files = Path(settings.model.path).glob("*.safetensors")
    num_parameters = sum(file.stat().st_size for file in files) / 2  # checkpoints are 16-bit
    return processes * GIB_A_PROCESS + num_parameters * bytes_a_parameter / 2**30


def local_cpus() -> int:
    """Return how many CPUs this process may use, a container's quota included."""
    count = len(os.sched_getaffinity(0))
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(count, math.ceil(int(quota) / int(period))) if quota.isdigit() else count


def local_gpus() -> int:
    """Return how many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


def local_memory_gib() -> float:
    """Return the memory of this machine or container, in GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return (min(total, int(limit)) if limit.isdigit() else total) / 2**30


def available_memory_gib() -> float:
    """Return the memory that processes of this machine or container can still fill, in GiB.

    What the pages of files take counts, as far as the kernel gives it up when it is asked.
    """
    import psutil

    available: int = psutil.virtual_memory().available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit.isdigit():
        pages = dict(line.split() for line in _cgroup("memory.stat").splitlines())
        available = min(available, int(limit) - int(used) + int(pages["inactive_file"]))
    return available / 2**30


def _cgroup(name: str) -> str:
    try:
        return (CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
