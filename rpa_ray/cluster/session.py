"""A Ray cluster for one campaign: joined or started, left on every way out."""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray._private.node import Node

from rpa_ray.cluster.address import ClusterAddress, cluster_to_join, refused_cluster
from rpa_ray.cluster.hardware import NativeDtype, native_dtype
from rpa_ray.cluster.nodes import ask_nodes, living_nodes
from rpa_ray.cluster.private import private_cluster
from rpa_ray.config import ClusterSettings, ConfigError
from rpa_ray.run_folder.outcome import cause_of

_RAY_SAYS_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process of a submitted job."""
_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def native_dtype_of_cluster(cluster: ClusterSettings) -> NativeDtype:
    """Return what every node of a joined cluster computes that could hold a rank.

    Raises:
        ConfigError: The cluster cannot be joined, no node of it has room for a rank, or one does
            not answer within ``cluster.timeout_s``.
    """
    asked = {"CPU": cluster.cpus_per_rank, "GPU": cluster.gpus_per_rank}
    on_gpu = cluster.gpus_per_rank > 0
    with ray_session(cluster.address):
        able = [
            node
            for node in living_nodes()
            if all(node.has.get(unit, 0) >= num for unit, num in asked.items())
        ]
        # A part of a GPU is enough to see it.
        share = min(cluster.gpus_per_rank, 0.01)
        answers = ask_nodes(able, native_dtype, on_gpu, limit_s=cluster.timeout_s, num_gpus=share)
    if not answers:
        raise ConfigError(
            "cluster.cpus_per_rank",
            "be what one node of the Ray cluster has, with cluster.gpus_per_rank",
            f"{asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs",
            "Lower them or join another cluster.",
        )
    natives = []
    for node, answer in answers:
        if not isinstance(answer, NativeDtype):
            raise ConfigError(
                "cluster.timeout_s",
                "be long enough for every node to say which type of weights it computes",
                cluster.timeout_s,
                f"Node {node.address}: {cause_of(str(answer)) or 'no answer'}. Raise it, look "
                "after the nodes, or set model.dtype.",
            )
        natives.append(answer)
    return min(natives, key=lambda answer: answer.dtype == "bfloat16")


class ClusterNotStarted(RuntimeError):
    """Ray did not come up on this machine, asked twice."""


@contextmanager
def ray_session(address: str | None, told: Callable[[str], None] = print) -> Iterator[None]:
    """Join the cluster of ``address`` or RAY_ADDRESS, or start a private one here for the time.

    A cluster that happens to run here is not joined unasked: it may be somebody's test. One that is
    joined asks for what it was started to ask for (RAY_AUTH_MODE and RAY_AUTH_TOKEN). ``told``
    hears in one line where a start failed and is tried once more.

    Raises:
        ConfigError: The cluster cannot be joined.
        ClusterNotStarted: None comes up here.
    """
    joined = cluster_to_join(address)
    with _own_cluster(told) if joined is None else _joined_cluster(joined):
        try:
            with interrupted_by(signal.SIGTERM):
                yield
        finally:
            ray.shutdown()


@contextmanager
def _joined_cluster(joined: ClusterAddress) -> Iterator[None]:
    # A job has uploaded its package; a driver brings its own, whatever the cluster has.
    is_job = _RAY_SAYS_JOB in os.environ
    package = {} if is_job else {"py_modules": [str(Path(__file__).parents[1])]}
    try:
        ray.init(address=joined.value, runtime_env=package, **_QUIET)
    except (ConnectionError, RuntimeError) as error:
        raise refused_cluster(joined.value, joined.key, str(error)) from error
    yield


@contextmanager
def _own_cluster(told: Callable[[str], None]) -> Iterator[None]:
    """Start a private cluster, in a second try where Ray's processes did not come up in time.

    Ray gives its node half a minute, which a busy machine may not keep.
    """
    try:
        with private_cluster() as private:
            _start(private)
            yield
            return
    except _NotUp as error:
        told(f"Ray did not come up ({error}); it is started once more")
    with private_cluster() as private:
        try:
            _start(private)
        except _NotUp as error:
            raise ClusterNotStarted(
                f"Ray must come up on this machine, got twice: {error}. Wait until less runs here "
                f"(load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs), and repeat the command."
            ) from None
        yield


class _NotUp(Exception):
    """One try to start Ray failed; says why in one line."""


def _start(private: Mapping[str, Any]) -> None:
    try:
        ray.init(address="local", include_dashboard=False, **private, **_QUIET)
    except Exception as error:  # of many kinds, by which of its processes was late
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("self")
            if isinstance(node, Node):  # or its processes would live as long as this one
                node.kill_all_processes(  # type: ignore[no-untyped-call]
                    check_alive=False, allow_graceful=False
                )
        ray.shutdown()
        raise _NotUp(cause_of(f"{type(error).__name__}: {error}").rstrip(".")) from None


@contextmanager
def interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Take a signal as Ctrl-C in the meantime: Ray's own handler of SIGTERM aborts the process."""

    def interrupt(received: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield
        return
    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)
