"""A Ray cluster of several nodes on this machine, each of which can be lost as a machine is."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from processes import descendants, title

PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
RAY_WORKER_PORTS = range(10002, 20000)
"""Of another cluster on this machine that was started without a range of its own."""
OWN_DISK = 'mount -t tmpfs none "$0" && exec "$@"'
NEW_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
_START_LIMIT_S = 300.0
_OBJECT_STORE_BYTES = 150 * 2**20


class Raylets:
    """A head without CPUs, where drivers are, and nodes by name."""

    def __init__(self, folder: Path) -> None:
        """Start the head; the path of the folder must be short, for Ray's sockets."""
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        self._start("head", 0.0, head, ())
        self._wait_until_started("head")

    def add(self, cpus: Mapping[str, float], *, own_disk_over: Path | None = None) -> None:
        """Start nodes by name, which may have disks of their own in the place of a folder."""
        before: tuple[str, ...] = ()
        if own_disk_over is not None:
            before = (*NEW_MOUNTS, "bash", "-c", OWN_DISK, str(own_disk_over))
        for name, number in cpus.items():
            self._start(name, number, [f"--address={self.address}"], before)
            # One after the other: Ray gives each half a minute, whatever else starts.
            self._wait_until_started(name)

    def _wait_until_started(self, name: str) -> None:
        log = self._folder / f"{name}.log"
        deadline = time.monotonic() + _START_LIMIT_S
        while "Ray runtime started" not in log.read_text(errors="replace"):
            assert self._nodes[name].poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)

    def _start(self, name: str, cpus: float, options: list[str], before: tuple[str, ...]) -> None:
        command = [
            *(*before, str(Path(sys.executable).with_name("ray")), "start", "--block"),
            *("--node-ip-address=127.0.0.1", f"--num-cpus={cpus:g}", "--num-gpus=0"),
            *("--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
            *options,
        ]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._nodes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    def holding(self, class_name: str) -> set[str]:
        """Return the nodes on which workers of a class live."""
        return {
            name
            for name, node in self._nodes.items()
            for one in descendants(node.pid)
            if title(one.pid).split(".")[0] == f"ray::{class_name}"
        }

    def kill(self, name: str) -> None:
        """Have a node go at once with all that runs there, as a machine without power."""
        node = self._nodes.pop(name)
        for one in [node.pid, *(below.pid for below in descendants(node.pid))]:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        node.wait()

    def end(self) -> None:
        """End every node."""
        for name in list(self._nodes):
            self.kill(name)


def free_ports(num: int) -> list[int]:
    """Return ports that stay free until Ray binds them: the system gives them to nobody unasked."""
    first, last = map(int, PORT_RANGE.read_text().split())
    ports = [p for p in range(2**10, 2**16) if not first <= p <= last and p not in RAY_WORKER_PORTS]
    random.shuffle(ports)
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < num:
            probe = held.enter_context(socket.socket())
            with suppress(OSError):  # somebody has it
                probe.bind(("", ports[-1]))
                found.append(ports[-1])
            ports.pop()
    return found


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without what names another cluster or cache."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RPA_RAY_"))}
    return inherited | variables


def end(process: subprocess.Popen[bytes]) -> None:
    """End a node and what it has started."""
    own: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):  # the node did not come up
        own = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(120)
    finally:
        for child in own:
            with suppress(psutil.NoSuchProcess):
                child.kill()
