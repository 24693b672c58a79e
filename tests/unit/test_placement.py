from pathlib import Path

import pytest

from rpa_ray import placement
from rpa_ray.config import ConfigError, ExperimentSettings, parse_tree
from rpa_ray.placement import (
    check_placement,
    cpus_asked,
    gpus_asked,
    local_cpus,
    local_memory_gib,
    memory_asked_gib,
)


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
        check_placement(cell(cpus_per_rank=asked), "cells[1].")
    assert str(caught.value) == (
        f"cells[1].cluster must ask for at most the {local_cpus()} CPUs of this machine, got "
        f"'{asked + 0.75:g} CPUs'. Lower num_ranks, num_rollout_workers, num_scorer_workers or "
        "their cpus_per_*."
    )


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cluster must ask for at most the \d+ GPUs of this"):
        check_placement(cell(cpus_per_rank=0.1, gpus_per_rank=1000), "")


def test_more_memory_than_there_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * 2**30}\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(placement, "CGROUP", tmp_path)
    with pytest.raises(ConfigError, match=r"^cluster must ask for at most the 2.0 GiB memory of"):
        check_placement(cell(cpus_per_rank=0.1), "")


@pytest.mark.parametrize("by", ["address", "variable"])
def test_a_cluster_that_is_joined_is_not_judged_by_this_machine(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "variable":
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        check_placement(cell(cpus_per_rank=4096), "")
    else:
        check_placement(cell(cpus_per_rank=4096, address="auto"), "")


def test_a_containers_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "CGROUP", tmp_path)
    whole = local_cpus(), local_memory_gib()
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    assert (local_cpus(), local_memory_gib()) == (1, 0.25)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (local_cpus(), local_memory_gib()) == whole
