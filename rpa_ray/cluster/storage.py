"""Whether every node of a joined cluster sees the folders of a run as the driver does.

Ranks write results, engines read models: on a disk of its own a node would find nothing, or leave
its results where nobody looks for them.
"""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from ray.exceptions import GetTimeoutError, RayTaskError

from rpa_ray.cluster.nodes import Node, ask_nodes, living_nodes
from rpa_ray.config import ConfigError
from rpa_ray.run_folder.outcome import cause_of

_PREFIX = ".shared-"
_SEEN_WITHIN_S = 10.0
"""A network file system shows what is new to others after some seconds."""
_POLL_S = 0.2


def require_shared(folders: Mapping[str, Path], limit_s: float) -> int:
    """Return how many nodes share the folders; refuse a folder that one of them does not share.

    In each folder, which is made, the driver writes a random word; a task on every node reads it
    and writes it back under a name of its own. The files are gone at the end.

    Args:
        folders: By what names each: an option, a key or a variable.
        limit_s: Longest wait for the nodes.

    Raises:
        ConfigError: with the address of the node and what it met.
    """
    nodes = living_nodes()
    answers: list[tuple[Node, object]] = []
    for key, folder in folders.items():
        there = folder.absolute()
        there.mkdir(parents=True, exist_ok=True)
        name, word = f"{_PREFIX}{secrets.token_hex(8)}", secrets.token_hex(32)
        asked = there / name
        try:
            asked.write_text(word, encoding="ascii")
            answers = ask_nodes(nodes, echo, str(asked), limit_s=limit_s)
            for node, answer in answers:
                problem = _problem(answer, there, word, limit_s)
                if problem:
                    raise _not_shared(key, there, node.address, problem)
        finally:
            for file in there.glob(f"{name}*"):
                file.unlink(missing_ok=True)
    return len(answers)


def echo(path: str) -> str:
    """Read the word in a file and write it beside; return the name of what was written."""
    asked = Path(path)
    _wait_for(asked)
    answer = asked.with_name(f"{asked.name}-{secrets.token_hex(8)}")
    answer.write_text(asked.read_text(encoding="ascii"), encoding="ascii")
    return answer.name


def _problem(answer: object, folder: Path, word: str, limit_s: float) -> str:
    """Return what is wrong with a node's answer; nothing where it is the word."""
    if isinstance(answer, GetTimeoutError):
        return f"it did not answer within {limit_s:g} s (cluster.timeout_s)"
    if isinstance(answer, RayTaskError):
        return str(answer.cause)
    if isinstance(answer, Exception):
        return cause_of(str(answer)).rstrip(".")
    written = folder / str(answer)
    _wait_for(written)
    if not written.is_file() or written.read_text(encoding="ascii") != word:
        return "what it wrote is not seen by the driver"
    return ""


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _not_shared(key: str, folder: Path, address: str, problem: str) -> ConfigError:
    return ConfigError(
        key,
        "lie on storage that every node of the Ray cluster shares, under the same path",
        str(folder),
        f"Node {address}: {problem}. Mount it there, or name another folder.",
    )
