from pathlib import Path

import pytest

from rpa_ray.cluster import resources
from rpa_ray.cluster.resources import (
    available_memory_gib,
    cpus_asked,
    gpus_asked,
    local_cpus,
    local_memory_gib,
    memory_asked_gib,
    parallel_cells,
    require_resources,
)
from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks import machine
from rpa_ray.plan.checks.machine import check_placement


def cell(**cluster: float | str) -> ExperimentSettings:
    return parse_tree({"cluster": cluster})


def test_reservations_of_ranks_and_workers_add_up() -> None:
    # 2 x 1.5 + 3 x 0.5 + 1 x 0.25
    settings = cell(num_ranks=2, cpus_per_rank=1.5, num_rollout_workers=3)
    assert cpus_asked(settings) == 4.75
    # 2 x 1 + 1 x 0.5
    assert gpus_asked(cell(num_ranks=2, gpus_per_rank=1, gpus_per_scorer_worker=0.5)) == 2.5


def test_memory_is_that_of_the_processes_and_of_the_weights(tmp_path: Path) -> None:
    # three processes of 2 GiB
    assert memory_asked_gib(cell()) == pytest.approx(6.0)
    # 2**20 parameters of 6 + 12 + 2 bytes
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 2**21)
    settings = parse_tree({"model": {"path": str(tmp_path)}})
    assert memory_asked_gib(settings) == pytest.approx(6.0 + 20 / 1024)


def test_more_cpus_than_there_are_are_refused() -> None:
    asked = local_cpus() + 1
    with pytest.raises(ConfigError) as caught:
        check_placement(cell(cpus_per_rank=asked))
    assert str(caught.value) == (
        f"cluster must ask for at most the {local_cpus()} CPUs of this machine, got "
        f"'{asked + 0.75:g} CPUs'. Lower num_ranks, num_rollout_workers, num_scorer_workers, "
        "their cpus_per_* or parallel_cells."
    )


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cluster must ask for at most the \d+ GPUs of this"):
        check_placement(cell(cpus_per_rank=0.1, gpus_per_rank=1000))


def test_more_memory_than_there_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * 2**30}\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    with pytest.raises(ConfigError, match=r"^cluster must ask for at most the 2.0 GiB memory of"):
        check_placement(cell(cpus_per_rank=0.1))


def test_cells_side_by_side_count_each() -> None:
    check_placement(cell(cpus_per_rank=0.01, parallel_cells=1))
    with pytest.raises(ConfigError, match=r"CPUs of this machine"):
        check_placement(cell(cpus_per_rank=0.01, parallel_cells=2 * local_cpus()))


@pytest.fixture
def small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend 2 CPUs and 16 GiB, without a cluster to join."""
    for module in (resources, machine):
        monkeypatch.setattr(module, "local_cpus", lambda: 2)
    monkeypatch.setattr(machine, "local_memory_gib", lambda: 16.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("cluster", "num_cells", "num"),
    [
        ({"cpus_per_rank": 0.25}, 5, 2),  # 1 CPU each
        ({"cpus_per_rank": 0.25}, 1, 1),  # no more than there are cells
        ({"cpus_per_rank": 0.01, "cpus_per_rollout_worker": 0.01}, 5, 2),  # a core each at least
        ({"cpus_per_rank": 1.0}, 5, 1),  # 1.75 CPUs
        ({"cpus_per_rank": 0.25, "num_scorer_workers": 4}, 5, 1),  # 12 GiB
        ({"cpus_per_rank": 0.25, "parallel_cells": 1}, 5, 1),
        ({"cpus_per_rank": 0.25, "parallel_cells": 9}, 5, 5),
        ({"cpus_per_rank": 0.25, "address": "auto"}, 5, 1),
    ],
)
def test_as_many_cells_run_side_by_side_as_the_machine_has_room_for(
    cluster: dict[str, float | str], num_cells: int, num: int, small_machine: None
) -> None:
    assert parallel_cells([cell(**cluster)] * num_cells) == num


def require_cluster_resources(settings: ExperimentSettings, nodes: list[dict[str, float]]) -> None:
    num_cells = settings.cluster.parallel_cells or 1
    require_resources(settings, nodes, "the Ray cluster", num_cells)


def test_a_cluster_that_was_joined_and_is_too_small_is_refused() -> None:
    # 2 x 1 + 0.5 + 0.25 CPUs, 2 x 1 GPUs
    settings = cell(num_ranks=2, gpus_per_rank=1)
    require_cluster_resources(settings, [{"CPU": 2.75, "GPU": 2.0, "node:a": 1.0}])
    with pytest.raises(ConfigError) as caught:
        require_cluster_resources(settings, [{"CPU": 1.0, "GPU": 8.0}, {"CPU": 1.0}])
    assert str(caught.value) == (
        "cluster must ask for at most the 2 CPUs of the Ray cluster, got '2.75 CPUs'. Lower "
        "num_ranks, num_rollout_workers, num_scorer_workers, their cpus_per_* or parallel_cells."
    )
    with pytest.raises(ConfigError, match="at most the 0 GPUs of the Ray cluster, got '2 GPUs'"):
        require_cluster_resources(settings, [{"CPU": 2.75}])
    with pytest.raises(ConfigError, match=r"got '3\.5 CPUs'"):
        require_cluster_resources(cell(parallel_cells=2), [{"CPU": 3.0}])


def test_a_worker_that_no_node_of_a_joined_cluster_holds_is_refused() -> None:
    settings = cell(gpus_per_rollout_worker=2)
    with pytest.raises(ConfigError) as caught:
        require_cluster_resources(settings, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}])
    assert str(caught.value) == (
        "cluster.gpus_per_rollout_worker must be what one node of the Ray cluster has (4 CPUs and "
        "1 GPUs), got '2'. A worker lies on one node: lower it, or take larger nodes."
    )


@pytest.mark.parametrize("address", ["", "local"])
def test_a_cluster_that_is_started_here_is_judged_by_this_machine(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="CPUs of this machine"):
        check_placement(cell(cpus_per_rank=4096, address=address))


@pytest.mark.parametrize("by", ["address", "variable"])
def test_a_cluster_that_is_joined_is_not_judged_by_this_machine(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "variable":
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        check_placement(cell(cpus_per_rank=4096))
    else:
        check_placement(cell(cpus_per_rank=4096, address="auto"))


def test_a_containers_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    whole = local_cpus(), local_memory_gib()
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    assert (local_cpus(), local_memory_gib()) == (1, 0.25)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (local_cpus(), local_memory_gib()) == whole


def test_what_is_available_is_what_a_container_has_left_and_the_pages_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    assert 0 < available_memory_gib() <= local_memory_gib()
    # 2**28 bytes, of which 2**27 are used, 2**25 of those by files
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    (tmp_path / "memory.current").write_text(f"{2**27}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**25}\nactive_file 7\n")
    assert available_memory_gib() == 0.125 + 0.03125
