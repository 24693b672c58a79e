"""What the tests see of other processes and their folders, while these come and go."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observed_run import file_sizes
from processes import kill_when, process, still_there, title

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


@pytest.fixture
def watched() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as running:
        while title(running.pid) != "sleep 600":
            time.sleep(0.01)
        yield running
        running.kill()


def test_a_process_is_killed_in_the_state_of_another(watched: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sleep", "601"]) as victim:
        assert kill_when(victim.pid, watched.pid, ["sleep 600"], for_s=0.0, timeout_s=30)
        assert victim.wait() == -9
    assert watched.poll() is None


def test_a_dead_process_that_nobody_has_asked_for_is_not_killed(
    watched: subprocess.Popen[bytes],
) -> None:
    with subprocess.Popen(["true"]) as victim:
        while (found := process(victim.pid)) is None or found.state != "Z":
            time.sleep(0.01)
        assert not kill_when(victim.pid, watched.pid, ["sleep 600"], for_s=0.0, timeout_s=30)
        assert still_there([found]) == []


def test_files_and_folders_that_vanish_meanwhile_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vanishing").mkdir()
    (tmp_path / "vanished").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"12345")
    scandir = os.scandir

    def late(path: Any) -> Any:
        if Path(path).name == "vanishing":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert file_sizes(tmp_path) == [5]
    assert not (tmp_path / "vanishing").exists()
