"""The install: what the locks pin, and that nothing gets past their hashes."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from structure import ROOT

LOCKS = sorted((ROOT / "launch" / "locks").glob("*.lock"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
PYTHON = """#!/bin/sh
case "$*" in
"-m venv "*)
    mkdir "$3/bin"
    cp "$0" "$3/bin/python"
    echo "#!$3/bin/python" >"$3/bin/pip"
    ;;
"-m pip "*) echo "$*" >>"$COMMANDS" ;;
esac
"""
"""In place of Python: makes an environment of itself, and notes what pip is asked."""
DF = "#!/bin/sh\necho head\necho disk 0 0 100000000\n"


def pins_of(lock: Path) -> dict[Requirement, list[str]]:
    """Return the requirements of a lock, each with the options after it."""
    lines = lock.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    pins = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            requirement, *options = re.split(r"\s+(?=--)", line.strip())
            pins[Requirement(requirement)] = options
    return pins


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_has_one_version_and_a_hash_of_each_of_its_files(lock: Path) -> None:
    pins = pins_of(lock)
    assert pins
    for requirement, options in pins.items():
        assert re.fullmatch(r"==[^=*]+", str(requirement.specifier)), requirement
        assert options, requirement
        assert [option for option in options if not HASH.fullmatch(option)] == []


@pytest.fixture
def commands(tmp_path: Path) -> list[str]:
    """Run the script on a machine where pip only takes notes; return what it was asked."""
    (tmp_path / "launch").mkdir()
    for path in (ROOT / "launch" / "install.sh", ROOT / "pyproject.toml"):
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    (tmp_path / "launch" / "locks").symlink_to(ROOT / "launch" / "locks")
    (tmp_path / "bin").mkdir()
    for name, text in (("python", PYTHON), ("df", DF)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    noted = tmp_path / "commands"
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "bin" / "python"),
        "COMMANDS": str(noted),
    }
    script = ["bash", str(tmp_path / "launch" / "install.sh")]
    run = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return noted.read_text().splitlines()


def test_the_script_installs_wheels_with_the_hashes_of_a_lock_and_this_package(
    commands: list[str],
) -> None:
    locked = [command for command in commands if " -e " not in command]
    for command in locked:
        assert " --require-hashes --no-deps --only-binary :all: -r " in command
    found = [re.findall(r"locks/(\S+)\.lock", command) for command in locked]
    assert found[0] == ["pip"]
    assert sorted(found) == [[lock.stem] for lock in LOCKS]
    (product,) = set(commands) - set(locked)
    assert " install --no-deps --no-build-isolation -e " in product
    assert [name for (name,) in found if "--no-binary" in locked[found.index([name])]] == [
        "deepspeed"
    ]


def test_torch_comes_from_the_index_of_its_builds_for_cpus(commands: list[str]) -> None:
    (torch,) = [command for command in commands if "locks/torch.lock" in command]
    assert torch.endswith(" --index-url https://download.pytorch.org/whl/cpu")


def test_the_locks_pin_what_pyproject_and_the_extras_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for lock in LOCKS
        if lock.stem != "trl-0.9.6"  # in a folder of its own, for a test
        for pin in pins_of(lock)
    }
    extras = project["optional-dependencies"]
    wanted = [Requirement(r) for r in project["dependencies"] + extras["cpu"] + extras["dev"]]
    unmet = [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert unmet == []
