import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rpa_ray import ray_job
from rpa_ray.config import ConfigError
from rpa_ray.plan import load_config
from rpa_ray.ray_job import (
    MAX_FILE_BYTES,
    ROOT,
    exit_status,
    find_config,
    is_this_machine,
    kind_of,
    server_address,
    stage,
)
from rpa_ray.world.shipped import SHIPPED

CONFIG = ROOT / "configs" / "attack_and_defence.yaml"


def test_the_whole_package_is_uploaded(tmp_path: Path) -> None:
    stage(tmp_path, CONFIG)
    suffixes = {".py", ".typed", ".html", ".css", ".json", ".yaml"}
    wanted = {
        path.relative_to(ROOT)
        for folder in ("rpa_ray", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert wanted <= {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}


def test_nothing_else_is_uploaded(tmp_path: Path) -> None:
    config = stage(tmp_path, CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {"rpa_ray", "configs", "job"}
    assert config == Path("job") / "attack_and_defence.yaml"
    # Beside the models that come with the package.
    own = [path for path in tmp_path.rglob("*") if path.suffix != ".safetensors"]
    assert sum(path.stat().st_size for path in own) < 3 * 2**20
    assert {path.parents[1].name for path in tmp_path.rglob("*.safetensors")} == {SHIPPED.name}


@pytest.mark.parametrize("name", ["big.yaml", "weights", "core.1", "grown.py"])
def test_a_large_file_is_not_uploaded_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    copy = tmp_path / "repository"
    for folder in ("rpa_ray", "configs"):
        shutil.copytree(ROOT / folder, copy / folder)
        (copy / folder / name).touch()
        os.truncate(copy / folder / name, MAX_FILE_BYTES + 1)
    (copy / "configs" / "dangling").symlink_to("nowhere")
    monkeypatch.setattr("rpa_ray.ray_job.ROOT", copy)
    stage(tmp_path / "upload", copy / "configs" / "attack_and_defence.yaml")
    assert {path.name for path in (tmp_path / "upload").rglob("*")}.isdisjoint({name, "dangling"})


def test_a_config_from_anywhere_means_the_same_after_the_upload(tmp_path: Path) -> None:
    own = tmp_path / "my config.yaml"
    own.write_text(
        "kind: campaign\n"
        f"include: [{CONFIG.parent}/attack/ppo.yaml, part.yaml]\n"
        "cells: [{defence: none}, {defence: {name: refusal_loss, alpha: 5e-1}}]\n"
    )
    (tmp_path / "part.yaml").write_text("data: {rho: 0.25}\nattack: {learning_rate: 5e-5}\n")
    upload = tmp_path / "upload"
    assert load_config(upload / stage(upload, own)) == load_config(own)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("kind: sweep", "sweep"),
        ("kind: campaign", "campaign"),
        ("seed: 1", "run"),
        ("kind: x", "run"),
    ],
)
def test_a_config_is_given_to_the_command_of_its_kind(
    tmp_path: Path, text: str, command: str
) -> None:
    (tmp_path / "some.yaml").write_text(text)
    assert kind_of(tmp_path / "some.yaml") == command


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ([], "run job/attack_and_defence.yaml --output {}/runs/attack_and_defence"),
        (
            ["--harden", "--cluster", "cpu"],
            "harden job/attack_and_defence.yaml --output {}/runs/harden-attack_and_defence "
            "--cluster cpu",
        ),
    ],
)
def test_a_run_is_hardened_where_that_is_asked_for(
    options: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[str] = []

    def submit(client: Any, **job: Any) -> str:
        submitted.append(job["entrypoint"])
        return "job"

    monkeypatch.setattr(ray_job, "require_job_server", lambda server: None)
    monkeypatch.setattr(ray_job, "submit", submit)
    monkeypatch.setattr(ray_job, "job_client", lambda server: None)
    monkeypatch.setattr("sys.argv", ["ray_job.sh", str(CONFIG), "--no-wait", *options])
    with pytest.raises(SystemExit) as ended:
        ray_job.main()
    assert ended.value.code == 0
    assert submitted[0].endswith(f" -m rpa_ray {command.format(ROOT)}")


def test_a_config_that_cannot_be_read_is_refused_before_anything_is_uploaded(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"^config must name a YAML file that can be read"):
        stage(tmp_path, tmp_path / "nowhere.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_no_config_is_refused_before_anything_is_uploaded(tmp_path: Path) -> None:
    (tmp_path / "secrets.yaml").write_text("token: abc\n")
    (tmp_path / "mine.yaml").write_text("include: [secrets.yaml]\nattack: none\n")
    upload = tmp_path / "upload"
    upload.mkdir()
    with pytest.raises(ConfigError, match=r"^token must be a known key"):
        stage(upload, tmp_path / "mine.yaml")
    assert list(upload.iterdir()) == []


def test_overrides_count_where_a_config_is_checked_before_it_is_uploaded(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("attack: none\ndefence: refusal_loss\n")
    with pytest.raises(ConfigError, match="defence must be none where attack is none"):
        stage(tmp_path / "upload", tmp_path / "mine.yaml")
    stage(tmp_path / "upload", tmp_path / "mine.yaml", overrides=["defence=none"])


def test_a_config_is_looked_for_here_then_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/quickstart.yaml"
    assert find_config(name) == ROOT / name
    (tmp_path / "configs").mkdir()
    (tmp_path / name).touch()
    assert find_config(name) == Path(name)
    assert find_config("no.yaml") == Path("no.yaml")


@pytest.mark.parametrize(
    ("server", "cluster", "address"),
    [
        (None, None, "http://127.0.0.1:8265"),
        (None, "10.0.0.5:6379", "http://127.0.0.1:8265"),
        (None, "http://head:8265/", "http://head:8265"),
        ("https://head", "http://other:8265", "https://head"),
    ],
)
def test_the_dashboard_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, server: str | None, cluster: str | None, address: str
) -> None:
    for name, value in (("RAY_API_SERVER_ADDRESS", server), ("RAY_ADDRESS", cluster)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert server_address() == address


def test_own_addresses_are_told_from_others() -> None:
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("localhost")
    assert not is_this_machine("203.0.113.1")  # an address kept for documentation


def test_the_exit_status_is_that_of_the_jobs_command() -> None:
    assert exit_status("SUCCEEDED", 0) == 0
    assert exit_status("FAILED", 2) == 2
    assert exit_status("FAILED", -signal.SIGKILL) == 137  # as a shell says it
    assert exit_status("FAILED", None) == 1
    assert exit_status("STOPPED", None) == 1
    assert exit_status("STOPPED", 0) == 1


class StartingCluster:
    """A cluster whose nodes are not ready for jobs at first."""

    def __init__(
        self, num_refusals: int, reason: str = "500: No available agent to submit"
    ) -> None:
        self.num_refusals = num_refusals
        self.reason = reason
        self.submitted: list[str] = []

    def submit_job(self, *, entrypoint: str) -> str:
        self.submitted.append(entrypoint)
        if len(self.submitted) <= self.num_refusals:
            raise RuntimeError(self.reason)
        return "job"


def test_a_cluster_that_has_just_been_started_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_job, "POLL_EVERY_S", 0.01)
    cluster: Any = StartingCluster(3)
    assert ray_job.submit(cluster, entrypoint="python") == "job"
    assert len(cluster.submitted) == 4


@pytest.mark.parametrize(("limit_s", "reason"), [(0.05, "No available agent"), (60, "bad request")])
def test_a_cluster_that_takes_no_job_is_an_error(
    limit_s: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job, "POLL_EVERY_S", 0.01)
    monkeypatch.setattr(ray_job, "START_LIMIT_S", limit_s)
    cluster: Any = StartingCluster(10**6, reason)
    with pytest.raises(RuntimeError, match=reason):
        ray_job.submit(cluster, entrypoint="python")


def test_plain_http_to_another_machine_is_warned_of_with_the_way_round() -> None:
    warning = ray_job.plain_text_warning("http://203.0.113.1:8265")
    assert "ssh -L 8265:localhost:8265 203.0.113.1" in warning
    for private in ("http://127.0.0.1:8265", "http://localhost:8265", "https://203.0.113.1:8265"):
        assert ray_job.plain_text_warning(private) == ""


def test_a_dashboard_that_takes_a_request_and_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_job, "ANSWER_LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        began = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            ray_job.job_client(address)
    assert time.monotonic() - began < 30


class GoneCluster:
    """A cluster that went without a word while the log of a job was followed."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield f"{job} has begun\n"
        await asyncio.Event().wait()

    def get_job_status(self, job: str) -> str:
        raise ConnectionError(f"no way to {job}")


def test_a_log_that_is_silent_because_the_cluster_went_is_not_followed_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_job, "ASK_EVERY_S", 0.05)
    cluster: Any = GoneCluster()
    assert ray_job._follow(cluster, "http://203.0.113.1:8265", "job") == 1
    told = capsys.readouterr()
    assert told.out == "job has begun\n"
    assert "no way to job" in told.err and "job may go on" in told.err
