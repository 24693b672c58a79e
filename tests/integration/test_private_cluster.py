"""Nobody but who started a run reaches it: neither from another address nor as another user.

A sweep with Ray Tune, Ray Train on two ranks and vLLM together runs in a network of its own, which
a second network is tied to by a cable, as another machine would be.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command_line import RPA_RAY
from processes import descendants, listening, raylet, session_folder, title

ROOT = Path(__file__).parents[2]
INTRUDER = ROOT / "tests" / "intruder.py"
ADDRESS, NEIGHBOUR = "192.0.2.2", "192.0.2.1"
"""Addresses set aside for documentation; nobody else has them in networks of our own."""
SWEEP = f"""
kind: sweep
include:
  - {ROOT}/configs/model/chat.yaml
  - {ROOT}/configs/data/beavertails_embedded.yaml
  - {ROOT}/configs/attack/ppo.yaml
  - {ROOT}/configs/cluster/cpu.yaml
data: {{num_samples: 64}}
evaluation: {{num_prompts: 4, num_resamples: 100}}
cluster: {{parallel_cells: 1, num_ranks: 2}}
sweep:
  attack.kl_coef: [0.1]
"""
# Ray takes the address from which the world is reached for its own: without a way out it would take
# the loopback address by itself.
NETWORKS = f"""
set -e
ip link set lo up
ip link add outside type veth peer name inside
unshare --net "$@" &
# Its network is another once it has left this one.
while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link set inside netns $!
ip addr add {NEIGHBOUR}/24 dev outside
ip link set outside up
nsenter --net=/proc/$!/ns/net sh -c "ip link set lo up &&
  ip addr add {ADDRESS}/24 dev inside && ip link set inside up &&
  ip route add default via {NEIGHBOUR} && touch $CONNECTED"
wait $!
"""
NEW_NETWORK = ("unshare", "--user", "--map-root-user", "--net")
SEEN = ("JobQueue", "TrainController", "RayTrainWorker", "RolloutWorker", "ScoringWorker")
"""Workers that a run must have had for its ports to be all of its ports."""
OTHER_USER = 65534
POLL_S = 0.5

pytestmark = pytest.mark.timeout(900)


@dataclass
class Run:
    """A command in a network of its own, as seen from outside."""

    process: subprocess.Popen[bytes]
    log: Path
    listening: set[tuple[str, int, str]] = field(default_factory=set)
    """Address, port and process, of all looks."""
    private: Path = Path()
    """Folder of Ray's files."""

    def driver(self) -> int | None:
        """Return the process that has started Ray."""
        below = (one.pid for one in descendants(self.process.pid))
        return next((pid for pid in below if raylet(pid) is not None), None)

    def look(self) -> set[str]:
        """Note where the run listens now; return the titles of its processes."""
        driver = self.driver()
        if driver is None:
            return set()
        node = raylet(driver)
        if node is not None:
            self.private = session_folder(node).parents[1]
        pids = with_descendants(driver)
        with suppress(FileNotFoundError, ProcessLookupError):  # the driver has just ended
            self.listening |= listening(pids)
        return {title(pid) for pid in pids}

    def intrude(self, *, inside: bool) -> dict[str, list[int]]:
        """Try every port, without the token, from its own network or from the neighbour's."""
        driver, _ = driver_and_node(self)
        place = driver if inside else self.process.pid
        ports = sorted({str(port) for _, port, _ in listening_now(driver)})
        enter = ["nsenter", f"--target={place}", "--user", "--net", "--preserve-credentials"]
        command = [*enter, sys.executable, str(INTRUDER), "127.0.0.1" if inside else ADDRESS]
        result = subprocess.run([*command, *ports], check=True, capture_output=True, timeout=300)
        found: dict[str, list[int]] = json.loads(result.stdout)
        return found


def listening_now(driver: int) -> set[tuple[str, int, str]]:
    return listening(with_descendants(driver))


def with_descendants(driver: int) -> list[int]:
    return [driver, *(one.pid for one in descendants(driver))]


def driver_and_node(run: Run) -> tuple[int, int]:
    driver = run.driver()
    node = None if driver is None else raylet(driver)
    assert driver is not None and node is not None, run.log.read_text()[-3000:]
    return driver, node


def in_networks(command: list[str], folder: Path, cache: Path) -> Run:
    connected = folder / "connected"
    waiting = ["sh", "-c", f'until [ -e {connected} ]; do sleep 0.05; done; exec "$@"', "sh"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*NEW_NETWORK, "bash", "-c", NETWORKS, "bash", *waiting, *command],
            env={**os.environ, "RPA_RAY_CACHE": str(cache), "CONNECTED": str(connected)},
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    return Run(process, log)


def wait_for(run: Run, names: tuple[str, ...]) -> None:
    """Wait until workers of these classes have all been seen at once."""
    while run.process.poll() is None:
        titles = run.look()
        if all(any(name in found for found in titles) for name in names):
            return
        time.sleep(POLL_S)
    raise AssertionError(run.log.read_text()[-3000:])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("private")
    (folder / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    run = in_networks([RPA_RAY, "sweep", "sweep.yaml"], folder, cache)
    try:
        wait_for(run, SEEN)
        yield run
    finally:
        # What runs in the networks does not end with the shell that made them.
        for one in descendants(run.process.pid):
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        run.process.wait(60)


def test_nothing_answers_at_a_second_address(sweep: Run) -> None:
    assert sweep.intrude(inside=False) == {"connects": [], "orders": [], "reads": []}


def test_without_the_token_nothing_is_read_or_ordered_on_the_machine_itself(sweep: Run) -> None:
    found = sweep.intrude(inside=True)
    assert found["connects"]
    assert (found["orders"], found["reads"]) == ([], [])


def test_another_user_reads_neither_its_files_nor_its_token(sweep: Run) -> None:
    driver, node = driver_and_node(sweep)
    private = sweep.private
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    environments = [Path(f"/proc/{pid}/environ") for pid in (driver, node)]
    assert all(b"RAY_AUTH_TOKEN=" in path.read_bytes() for path in environments[1:])
    assert {stat.S_IMODE(path.stat().st_mode) for path in environments} == {0o400}
    if os.getuid() == 0:
        for path in (private, *environments):
            look = subprocess.run(["head", path], user=OTHER_USER, capture_output=True, check=False)
            assert b"Permission denied" in look.stderr


def test_the_token_is_in_no_file_and_no_command_line(sweep: Run) -> None:
    driver, node = driver_and_node(sweep)
    environment = Path(f"/proc/{node}/environ").read_bytes().split(b"\0")
    token = dict(entry.partition(b"=")[::2] for entry in environment)[b"RAY_AUTH_TOKEN"]
    assert len(token) == 64
    places = (session_folder(node).parents[1], sweep.log.parent)
    held = [p for place in places for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
    assert [path for path in held if token in path.read_bytes()] == []
    assert [one for one in descendants(driver) if token.decode() in title(one.pid)] == []


def test_every_port_was_on_the_loopback_address(sweep: Run) -> None:
    while sweep.process.poll() is None:
        sweep.look()
        time.sleep(POLL_S)
    assert sweep.process.returncode == 0, sweep.log.read_text()[-3000:]
    elsewhere = [(place, name) for place, _, name in sweep.listening if place != "127.0.0.1"]
    assert elsewhere == []
    names = " ".join(name for _, _, name in sweep.listening)
    assert [name for name in SEEN if name not in names] == []
    assert not sweep.private.exists()
