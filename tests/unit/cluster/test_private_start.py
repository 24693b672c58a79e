import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.node import Node

from rpa_ray.cluster import session
from rpa_ray.cluster.private import private_cluster
from rpa_ray.cluster.session import ClusterNotStarted, ray_session
from rpa_ray.cluster.temporary import MAX_FOLDER_BYTES, folder_for_ray
from rpa_ray.config import ConfigError


@pytest.fixture(autouse=True)
def _no_named_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def has_tmpdir(folder: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))


def test_a_folder_with_a_long_path_gives_way_to_a_short_private_one_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    has_tmpdir(long, monkeypatch)
    with private_cluster() as private:
        of_ray = Path(private["_temp_dir"])
        # What Ray makes below it, with the longest number of a process.
        sockets = of_ray / "session_2026-11-27_17-57-14_123456_4194304" / "sockets"
        assert len(bytes(sockets / "plasma_store")) <= 107
        assert of_ray.parent.stat().st_mode & 0o777 == 0o700
        assert list(long.iterdir()) == []
    assert not of_ray.parent.exists()


def test_a_short_folder_is_the_one_that_the_user_named(monkeypatch: pytest.MonkeyPatch) -> None:
    has_tmpdir("/var/tmp", monkeypatch)
    assert folder_for_ray() == "/var/tmp"


def test_the_longest_folder_leaves_room_for_the_sockets() -> None:
    below = "/rpa-ray-abcdefgh/ray/session_2026-11-27_17-57-14_123456_4194304/sockets/plasma_store"
    assert MAX_FOLDER_BYTES + len(below) == 107


def test_a_named_folder_is_refused_where_it_is_too_long_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 80}")
    with pytest.raises(
        ConfigError, match=r"RAY_TMPDIR must name a folder whose .* at most 22"
    ) as e:
        folder_for_ray()
    assert "(85 bytes)" in str(e.value) and "Set RAY_TMPDIR to a short one" in str(e.value)
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    with pytest.raises(ConfigError, match="RAY_TMPDIR must name a folder that can be written"):
        folder_for_ray()
    monkeypatch.delenv("RAY_TMPDIR")
    has_tmpdir(f"/tmp/{'x' * 80}", monkeypatch)
    monkeypatch.setattr("rpa_ray.cluster.temporary.SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(ConfigError, match="TMPDIR must name a folder whose path has at most"):
        folder_for_ray()


class SlowRay:
    """Ray's start: fails so often, as a node that is late does, then works."""

    def __init__(self, num_failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_left = num_failures
        self.folders: list[Any] = []
        self.killed: list[Node] = []
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(Node, "__init__", SlowRay.start_node)
        monkeypatch.setattr(Node, "kill_all_processes", lambda node, **_: self.killed.append(node))

    @staticmethod
    def start_node(self: Node) -> None:
        raise Exception("The current node timed out during startup.")

    def init(self, **arguments: Any) -> None:
        self.folders.append(arguments["_temp_dir"])
        if self.num_left:
            self.num_left -= 1
            Node()  # type: ignore[call-arg]


def test_a_node_that_was_late_is_ended_and_another_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts, told = SlowRay(1, monkeypatch), list[str]()
    before = signal.getsignal(signal.SIGTERM)
    with ray_session("local", told.append):
        assert len(set(starts.folders)) == 2
        assert len(starts.killed) == 1
    assert told == [
        "Ray did not come up (Exception: The current node timed out during startup); "
        "it is started once more"
    ]
    assert not any(os.path.exists(os.path.dirname(folder)) for folder in starts.folders)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_machine_that_is_too_busy_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = SlowRay(2, monkeypatch)
    with pytest.raises(ClusterNotStarted) as caught, ray_session("local", lambda _: None):
        raise AssertionError
    assert "got twice: Exception: The current node timed out during startup. Wait until" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert len(starts.killed) == 2


def test_an_error_of_what_runs_on_the_cluster_is_no_reason_to_start_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts = SlowRay(0, monkeypatch)
    with pytest.raises(RuntimeError, match="mine"), ray_session("local"):
        raise RuntimeError("mine")
    assert len(starts.folders) == 1
    assert session.ray is ray
