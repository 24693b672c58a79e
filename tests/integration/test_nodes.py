"""Several Ray nodes on this machine: results are those of one node, also where some are lost.

The head holds drivers and queues alone. Nodes have as many CPUs as force Ray to spread a cell.
"""

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from command_line import RPA_RAY
from observed_run import ENGINE, RANK, compare_folders
from raylets import Raylets, environment

from rpa_ray.campaign.room import Room
from rpa_ray.cluster.nodes import living_nodes
from rpa_ray.config import ClusterSettings

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = ("model/chat.yaml", "data/beavertails_embedded.yaml", "cluster/cpu.yaml")
NUM_STEPS = 6
POLL_S = 0.05
WAIT_LIMIT_S = 600.0

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]


def campaign(**cluster: Any) -> dict[str, Any]:
    """Return two attacks by two ranks each, which leave a checkpoint after every step."""
    return {
        "kind": "campaign",
        "include": [*(str(CONFIGS / part) for part in PARTS), str(CONFIGS / "attack" / "ppo.yaml")],
        "data": {"num_samples": 8 * NUM_STEPS},
        "evaluation": {"num_prompts": 4, "num_resamples": 100},
        "cluster": {"num_ranks": 2, "checkpoint_interval_s": 0, "parallel_cells": 1, **cluster},
        # The longest begins first.
        "cells": [{"defence": {"name": "refusal_loss", "alpha": 100}}, {"defence": "none"}],
    }


class Campaign:
    """A campaign at work on a cluster that is joined."""

    def __init__(self, folder: Path, cache: Path, address: str, **cluster: Any) -> None:
        folder.mkdir()
        self.output = folder / "out"
        self.log = folder / "log"
        config = folder / "campaign.yaml"
        config.write_text(yaml.safe_dump(campaign(**cluster)))
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [RPA_RAY, "campaign", str(config), "--output", str(self.output)],
                env=environment(RPA_RAY_CACHE=str(cache), RAY_ADDRESS=address),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for_steps(self, *num_steps: int) -> None:
        """Wait until each cell has done as many steps, in the order of the config."""
        self.wait_until(
            lambda: all(done >= asked for done, asked in zip(self._steps(), num_steps, strict=True))
        )

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; fail where the command ends before."""
        deadline = time.monotonic() + WAIT_LIMIT_S
        while not is_so():
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(POLL_S)

    def _steps(self) -> list[int]:
        found = {"refusal_loss": 0, "none": 0}
        for path in self.output.glob("*/metrics.jsonl"):
            name = "refusal_loss" if "refusal_loss" in path.parent.name else "none"
            found[name] = path.read_bytes().count(b"\n")
        return list(found.values())

    def status(self) -> int:
        """Wait for the end; return the exit status."""
        return self._process.wait()

    def runs(self) -> list[Path]:
        """Wait for the end; return the run folders, in the order of the config."""
        assert self.status() == 0, self.log.read_text()[-3000:]
        records = json.loads((self.output / "summary.json").read_text())
        assert [record["status"] for record in records] == ["ok", "ok"], self.log.read_text()
        return [self.output / record["run"] for record in records]

    def end(self) -> None:
        """Have it end, whatever it is at."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(120)


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        nodes = Raylets(Path(folder))
        try:
            yield nodes
        finally:
            nodes.end()


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory, cache: Path, raylets: Raylets) -> list[Path]:
    """Return the runs of one node that has all that a cell asks for."""
    raylets.add({"whole": 2})
    running = Campaign(tmp_path_factory.mktemp("runs") / "one", cache, raylets.address)
    try:
        return running.runs()
    finally:
        running.end()
        raylets.kill("whole")


@pytest.fixture(scope="module")
def spread(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, one_node: list[Path], raylets: Raylets
) -> Iterator[list[Path]]:
    """Return the runs of a campaign that loses the node of the engine, then that of a rank.

    Both in the second cell; there is room elsewhere.
    """
    raylets.add({"first": 1, "second": 1, "third": 2})
    # The third node is filled by the engine before ranks are started.
    sizes = {"cpus_per_rank": 1, "cpus_per_rollout_worker": 2, "cpus_per_scorer_worker": 0}
    folder = tmp_path_factory.mktemp("runs") / "spread"
    running = Campaign(folder, cache, raylets.address, **sizes)
    try:
        running.wait_until(lambda: len(raylets.holding(RANK)) == 2)
        assert raylets.holding("JobQueue") == {"head"}
        assert raylets.holding(RANK) == {"first", "second"}
        assert raylets.holding(ENGINE) == {"third"}
        raylets.add({"fourth": 1, "fifth": 2})
        running.wait_for_steps(NUM_STEPS, 2)
        raylets.kill("third")
        running.wait_for_steps(NUM_STEPS, 4)
        assert raylets.holding(ENGINE) == {"fifth"}
        raylets.kill("first")
        running.wait_until(lambda: raylets.holding(RANK) == {"second", "fourth"})
        yield running.runs()
    finally:
        running.end()


def test_ranks_and_engine_on_three_nodes_give_the_digits_of_one_node(
    one_node: list[Path], spread: list[Path]
) -> None:
    found = compare_folders(one_node[0], spread[0])
    assert found.num_values > 40 * NUM_STEPS
    assert (found.num_not_equal, found.differences) == (0, [])


def test_a_campaign_that_loses_nodes_of_a_rank_and_of_the_engine_ends_with_the_same_numbers(
    one_node: list[Path], spread: list[Path]
) -> None:
    found = compare_folders(one_node[1], spread[1])
    assert found.num_values > 40 * NUM_STEPS
    assert found.differences == []
    told = (spread[0].parents[0] / "losses.log").read_text()
    assert "goes on from its last checkpoint, its ranks died: lost node " in told


def test_cells_side_by_side_end_with_the_same_numbers_where_a_lost_node_leaves_room_for_one(
    tmp_path: Path,
    cache: Path,
    one_node: list[Path],
    spread: list[Path],
    raylets: Raylets,
) -> None:
    # Left are two nodes of one CPU and one of two, a group takes 1.5.
    sizes = {"cpus_per_rank": 0.5, "cpus_per_rollout_worker": 0.5, "cpus_per_scorer_worker": 0}
    running = Campaign(tmp_path / "lanes", cache, raylets.address, parallel_cells=2, **sizes)
    try:
        running.wait_for_steps(1, 1)
        assert "fifth" in raylets.holding(RANK) | raylets.holding(ENGINE)
        raylets.kill("fifth")
        runs = running.runs()
    finally:
        running.end()
    for one, other in zip(one_node, runs, strict=True):
        assert compare_folders(one, other).differences == []


def test_a_node_with_a_disk_of_its_own_is_refused_by_run_and_doctor(
    tmp_path: Path, cache: Path, raylets: Raylets
) -> None:
    raylets.add({"apart": 4}, own_disk_over=tmp_path)
    running = Campaign(tmp_path / "refused", cache, raylets.address)
    try:
        assert running.status() == 2
        doctor = subprocess.run(
            [RPA_RAY, "doctor"],
            env=environment(RAY_ADDRESS=raylets.address, RPA_RAY_CACHE=str(tmp_path / "cache")),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        running.end()
        raylets.kill("apart")
    told = " ".join(running.log.read_text().split())
    assert "--output must lie on storage that every node of the Ray cluster shares" in told
    assert re.search(r"Node \S+: \[Errno 2\] No such file or directory", told)
    assert doctor.returncode == 1
    assert "shared storage: RPA_RAY_CACHE must lie on storage" in " ".join(doctor.stdout.split())


def test_a_lost_node_is_known_once_it_was_asked_and_leaves_no_room_for_its_group(
    raylets: Raylets,
) -> None:
    raylets.add({"kept": 1, "lost": 1})
    ray.init(address=raylets.address, log_to_driver=False)
    try:
        cluster = ClusterSettings(
            cpus_per_rank=1, cpus_per_rollout_worker=0, cpus_per_scorer_worker=0
        )
        room, said = Room(cluster, len(living_nodes()) - 1), list[str]()
        before = room.look()
        assert len(before) == len(living_nodes())
        assert room.num_excess() == 0
        raylets.kill("lost")
        (gone,) = before - room.look()
        assert room.num_excess() == 1
        room.tell(said.append)
        assert [gone in line for line in said] == [True]
    finally:
        ray.shutdown()
        raylets.kill("kept")
