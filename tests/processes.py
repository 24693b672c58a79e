"""What Linux tells of the processes of a run, and how one of them is killed in a given state.

Ray writes the method that a worker is in into the title of its process: ``ray::Worker.method``,
``ray::Worker`` between two calls. So an observer needs no hook in the program that it observes.
"""

import ipaddress
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One process; the start time tells it from a later one of the same number."""

    pid: int
    parent: int
    started_ticks: int
    state: str
    """One letter; ``T`` where it is stopped, ``Z`` where it is dead and nobody has asked yet."""


def process(pid: int) -> Process | None:
    """Return what there is to tell of a process, None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return Process(pid=pid, parent=int(fields[1]), started_ticks=int(fields[19]), state=fields[0])


def title(pid: int) -> str:
    """Return the command line of a process, empty where it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def all_processes() -> list[Process]:
    """Return every process of the machine."""
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [one for one in found if one is not None]


def descendants(pid: int) -> list[Process]:
    """Return the processes that were started below one, itself left out."""
    children: dict[int, list[Process]] = {}
    for one in all_processes():
        children.setdefault(one.parent, []).append(one)
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [one.pid for one in below]
    return found


def still_there(known: Collection[Process]) -> list[Process]:
    """Return those of the processes that have not ended."""
    ended = (None, "Z")
    now = {one.pid: process(one.pid) for one in known}
    return [
        one
        for one in known
        if (found := now[one.pid]) is not None
        and found.started_ticks == one.started_ticks
        and found.state not in ended
    ]


def ray_workers(driver: int, class_name: str) -> list[int]:
    """Return the workers of one class on the Ray node that a driver has started for itself.

    Workers are direct children of that node's raylet: what they fork is left out, and so is every
    other Ray cluster of the machine.
    """
    node = raylet(driver)
    mine = [p.pid for p in all_processes() if p.parent == node]
    return sorted(pid for pid in mine if title(pid).split(".")[0] == f"ray::{class_name}")


def kill_when(
    victim: int, watched: int, titles: Collection[str], *, for_s: float, timeout_s: float
) -> bool:
    """Kill a process at a moment when the title of one is among ``titles``.

    The victim is stopped, the title is read again, and only if it still holds the victim is killed:
    what it was in the middle of can be told for certain.

    Args:
        victim: Process that is killed.
        watched: Process whose title decides; may be the victim.
        titles: Titles that count.
        for_s: How long the title must have been among them without a break, seconds.
        timeout_s: Longest wait for such a moment, seconds.

    Returns:
        False where there was no such moment, or one of the two processes ended before.
    """
    deadline = time.monotonic() + timeout_s
    while _wait_for_title(watched, titles, for_s, deadline):
        try:
            os.kill(victim, signal.SIGSTOP)
            if not _stops(victim):
                return False
            if title(watched) in titles:
                os.kill(victim, signal.SIGKILL)
                return True
            os.kill(victim, signal.SIGCONT)
        except ProcessLookupError:
            return False
    return False


def _wait_for_title(pid: int, titles: Collection[str], for_s: float, deadline: float) -> bool:
    since: float | None = None
    while (now := time.monotonic()) < deadline:
        current = title(pid)
        if not current:
            return False
        since = (since or now) if current in titles else None
        if since is not None and now - since >= for_s:
            return True
        time.sleep(POLL_S)
    return False


def _stops(pid: int) -> bool:
    """Wait until a process is stopped; False where it has ended instead."""
    while (found := process(pid)) is not None and found.state not in "TZ":
        time.sleep(POLL_S / 10)
    return found is not None and found.state == "T"


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a process holds."""

    own_bytes: int
    """Memory that is in use and not shared with files or other processes."""
    num_files: int
    """Open files, sockets and pipes."""
    num_threads: int


def usage(pid: int) -> Usage | None:
    """Return what a process holds, None where it is gone or not ours to look into."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        num_files = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "RssAnon" not in fields:  # it has just ended
        return None
    return Usage(
        own_bytes=int(fields["RssAnon"][0]) * 1024,
        num_files=num_files,
        num_threads=int(fields["Threads"][0]),
    )


def raylet(driver: int) -> int | None:
    """Return the Ray node's own process below a driver, None before it is there."""
    mine = [p.pid for p in all_processes() if p.parent == driver]
    return next((pid for pid in mine if "/raylet/raylet " in title(pid)), None)


def session_folder(raylet_pid: int) -> Path:
    """Return the folder of logs and sockets of a Ray node."""
    words = dict(word.partition("=")[::2] for word in title(raylet_pid).split())
    return Path(words["--raylet_socket_name"]).parents[1]


def shared_memory_bytes(pid: int) -> int:
    """Return the pages in use of the files in shared memory that a process has open."""
    total = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            if os.readlink(path).startswith("/dev/shm/"):
                total += os.stat(path).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def listening(pids: Collection[int]) -> set[tuple[str, int, str]]:
    """Return where processes listen for TCP: address, port, and the title of the process.

    All of them in one network namespace, the first one's.
    """
    sockets = {f"socket:[{inode}]": place for inode, place in _listening_sockets(min(pids)).items()}
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    place = sockets.get(os.readlink(f"/proc/{pid}/fd/{name}"))
                    if place is not None:
                        found.add((*place, title(pid)))
    return found


def _listening_sockets(pid: int) -> dict[str, tuple[str, int]]:
    """Return address and port of every listening socket of a process's network, by inode."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                address, _, port = fields[1].partition(":")
                found[fields[9]] = (_address(address), int(port, 16))
    return found


def _address(digits: str) -> str:
    """Return an address that the kernel writes as words in this machine's byte order."""
    words = [digits[i : i + 8] for i in range(0, len(digits), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)
