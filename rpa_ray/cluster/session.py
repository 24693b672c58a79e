"""A Ray cluster for one campaign: joined or started, left on every way out."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rpa_ray.cluster.address import cluster_to_join, refused_cluster
from rpa_ray.cluster.hardware import NativeDtype, native_dtype
from rpa_ray.cluster.private import private_cluster
from rpa_ray.config import ClusterSettings, ConfigError

_RAY_SAYS_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process of a submitted job."""


def native_dtype_of_cluster(cluster: ClusterSettings) -> NativeDtype:
    """Return what every node of a joined cluster computes that could hold a rank.

    Raises:
        ConfigError: The cluster cannot be joined, no node of it has room for a rank, or one does
            not answer within ``cluster.timeout_s``.
    """
    asked = {"CPU": cluster.cpus_per_rank, "GPU": cluster.gpus_per_rank}
    on_gpu = cluster.gpus_per_rank > 0
    with ray_session(cluster.address):
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        able = [
            node["NodeID"]
            for node in nodes
            if all(node["Resources"].get(unit, 0) >= num for unit, num in asked.items())
        ]
        if not able:
            raise ConfigError(
                "cluster.cpus_per_rank",
                "be what one node of the Ray cluster has, with cluster.gpus_per_rank",
                f"{asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs",
                "Lower them or join another cluster.",
            )
        questions = [
            ray.remote(native_dtype)
            # Beside whatever runs there: a part of a GPU is enough to see it.
            .options(
                num_cpus=0,
                num_gpus=min(cluster.gpus_per_rank, 0.01),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(on_gpu)
            for node in able
        ]
        try:
            answers: list[NativeDtype] = ray.get(questions, timeout=cluster.timeout_s)
        except GetTimeoutError:
            raise ConfigError(
                "cluster.timeout_s",
                "be long enough for every node to say which type of weights it computes",
                cluster.timeout_s,
                "Raise it, look after the nodes, or set model.dtype.",
            ) from None
    return min(answers, key=lambda answer: answer.dtype == "bfloat16")


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster of ``address`` or RAY_ADDRESS, or start a private one here for the time.

    A cluster that happens to run here is not joined unasked: it may be somebody's test. One that is
    joined asks for what it was started to ask for (RAY_AUTH_MODE and RAY_AUTH_TOKEN).

    Raises:
        ConfigError: The cluster cannot be joined.
    """
    joined = cluster_to_join(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    own: AbstractContextManager[Mapping[str, Any]] = (
        private_cluster() if joined is None else nullcontext({})
    )
    with own as private:
        if joined is None:
            ray.init(address="local", include_dashboard=False, **private, **quiet)
        else:
            # A job has uploaded its package; a driver brings its own, whatever the cluster has.
            is_job = _RAY_SAYS_JOB in os.environ
            package = {} if is_job else {"py_modules": [str(Path(__file__).parents[1])]}
            try:
                ray.init(address=joined.value, runtime_env=package, **quiet)
            except (ConnectionError, RuntimeError) as error:
                raise refused_cluster(joined.value, joined.key, str(error)) from error
        try:
            with interrupted_by(signal.SIGTERM):
                yield
        finally:
            ray.shutdown()


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
