"""launch/ray_job.sh on a cluster that already runs: what is uploaded, what comes back."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from raylets import end, environment, free_ports

from rpa_ray.cluster.address import require_job_server, require_ray_cluster
from rpa_ray.config import ConfigError

ROOT = Path(__file__).parents[2]
BIG_FILE_BYTES = 200 * 2**20

pytestmark = pytest.mark.timeout(1500)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    dashboard: str
    address: str
    folder: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head node on free ports; end its processes, and no others, afterwards."""
    head, dashboard, client, agent = free_ports(4)
    # Not pytest's folder: the paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats"),
            *(f"--port={head}", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *("--min-worker-port=0", "--max-worker-port=0"),
        ]
        with (Path(folder) / "head.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
        try:
            found = Cluster(
                dashboard=f"http://127.0.0.1:{dashboard}",
                address=f"127.0.0.1:{head}",
                folder=Path(folder),
            )
            wait_for(found, process)
            yield found
        finally:
            end(process)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what a job needs, among files that must not be uploaded."""
    copy = tmp_path_factory.mktemp("work") / "repository"
    for folder in ("launch", "configs", "rpa_ray"):
        shutil.copytree(ROOT / folder, copy / folder)
        big = copy / folder / "some file"
        big.touch()
        os.truncate(big, BIG_FILE_BYTES)
    for name in ("weights.bin", "notes.yaml"):
        (copy / name).touch()
        os.truncate(copy / name, BIG_FILE_BYTES)
    return copy


def wait_for(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return require_job_server(cluster.dashboard)
        except ConfigError:
            time.sleep(0.5)
    raise AssertionError((cluster.folder / "head.log").read_text()[-2000:])


def ray_job(
    cluster: Cluster, repository: Path, cache: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Call the script from a folder that is not the repository."""
    return subprocess.run(
        ["bash", str(repository / "launch" / "ray_job.sh"), *arguments],
        cwd=repository.parent,
        env=environment(
            RAY_API_SERVER_ADDRESS=cluster.dashboard,
            RPA_RAY_PYTHON=sys.executable,
            RPA_RAY_CACHE=str(cache),
        ),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_runs_from_a_small_upload_and_leaves_its_results_where_it_said(
    cluster: Cluster, repository: Path, cache: Path
) -> None:
    # Which copy of the package the ranks and the workers have imported.
    for module in ("jobs/experiment.py", "actors/rollout.py"):
        marker = repository.parent / f"{Path(module).stem}.txt"
        with (repository / "rpa_ray" / module).open("a") as source:
            source.write(f"\nopen({str(marker)!r}, 'w').write(__file__)\n")
    result = ray_job(
        cluster,
        repository,
        cache,
        "configs/attack_and_defence.yaml",
        *("--set", "defence={name: none}"),
        *("--set", "data.num_samples=16"),
        *("--set", "evaluation.num_prompts=8"),
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "ppo none: evaluation before" in result.stdout  # the log was followed
    output = repository / "runs" / "attack_and_defence"
    assert re.findall(r"^results: +(.*)$", result.stdout, re.MULTILINE)[0] == str(output)
    (record,) = json.loads((output / "summary.json").read_text())
    assert (record["status"], record["defence"], record["num_samples"]) == ("ok", "none", 16)
    for marker in ("experiment.txt", "rollout.txt"):
        assert str(cluster.folder) in (repository.parent / marker).read_text()
    uploads = list(cluster.folder.glob("session_2*/runtime_resources/working_dir_files/*"))
    assert uploads
    assert sum(f.stat().st_size for upload in uploads for f in upload.rglob("*")) < 25 * 2**20


def test_a_job_that_is_refused_has_the_exit_status_of_its_command(
    cluster: Cluster, repository: Path, cache: Path
) -> None:
    own = repository.parent / "own.yaml"
    own.write_text("include: [repository/configs/attack/ppo.yaml]\n")
    result = ray_job(cluster, repository, cache, "own.yaml", "--set", "data.num_samples=80000")
    assert result.returncode == 2
    assert "error data.num_samples must be at most " in result.stdout


def test_a_job_that_is_not_waited_for_can_be_stopped_as_it_says(
    cluster: Cluster, repository: Path, cache: Path
) -> None:
    output = str(repository.parent / "stopped")
    config = "configs/attack_and_defence.yaml"
    result = ray_job(cluster, repository, cache, config, "--no-wait", "--output", output)
    assert result.returncode == 0, result.stderr[-3000:]
    (stop,) = re.findall(r"^stop: +(.*)$", result.stdout, re.MULTILINE)
    stopped = subprocess.run(
        ["bash", "-c", stop], env=environment(), capture_output=True, text=True
    )
    assert "was stopped" in stopped.stdout + stopped.stderr
    require_ray_cluster(cluster.address, "cluster.address")
