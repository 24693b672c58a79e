import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpa_ray.run_folder import lock
from rpa_ray.run_folder.lock import FolderInUse, NoLocks, exclusive, shared

HOLD = """
import sys, time
from pathlib import Path
from rpa_ray.run_folder.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(lock: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_that_another_process_holds_is_refused_with_its_name(tmp_path: Path) -> None:
    process = holder(tmp_path / ".lock")
    try:
        with (
            pytest.raises(FolderInUse, match=rf"^{tmp_path} must be used by one process"),
            exclusive(tmp_path / ".lock"),
        ):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path / ".lock")
    process.kill()
    process.wait()
    with exclusive(tmp_path / ".lock"):
        pass


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path / ".lock")
    process.terminate()
    with exclusive(tmp_path / ".lock", wait_s=30.0):
        pass
    process.wait()


def test_a_block_that_ends_lets_the_next_in(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "new" / ".lock"):
            pass


def test_a_shared_lock_lets_others_share_it_and_nobody_have_it_alone(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with shared(lock), shared(lock), pytest.raises(FolderInUse), exclusive(lock):
        pass
    with exclusive(lock), pytest.raises(FolderInUse), shared(lock):
        pass
    with shared(lock):
        pass


def test_storage_without_locks_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(file: object, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuses)
    with (
        pytest.raises(NoLocks, match=rf"^{tmp_path} must lie on storage .* No locks available\. "),
        exclusive(tmp_path / ".lock"),
    ):
        pass
