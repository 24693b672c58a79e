"""A Ray cluster of our own is private: it answers on the loopback address alone, and to a token.

Whoever reaches a cluster runs code as the user who started it. By default Ray's processes listen on
every address of the machine and ask for nothing, with or without the dashboard.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray._private.parameter
from ray._private import ray_constants
from ray._raylet import (  # type: ignore[attr-defined]  # of Ray's compiled part
    AuthenticationTokenLoader,
    Config,
)

from rpa_ray.cluster.temporary import PREFIX, RAY_FOLDER, folder_for_ray

LOOPBACK = "127.0.0.1"


@contextmanager
def private_cluster() -> Iterator[Mapping[str, Any]]:
    """Have the cluster that ``ray.init`` starts meanwhile be private; gives arguments for it.

    Its files (sockets, logs) lie in a folder that nobody else may enter, and that goes at the end.
    Leave it only after ``ray.shutdown``.
    """
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=folder_for_ray())
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        undo.callback(_read_environment_again)
        undo.enter_context(_environment(_variables(secrets.token_hex(32))))
        # Read from the environment when Ray was imported, which may be long ago.
        undo.enter_context(_attribute(ray_constants, "ENABLE_RAY_CLUSTER", False))
        # The port of the node's agent is fixed; where another cluster has it, the node would end.
        parameters = partial(ray._private.parameter.RayParams, dashboard_agent_listen_port=0)
        undo.enter_context(_attribute(ray._private.parameter, "RayParams", parameters))
        _read_environment_again()
        yield {"_temp_dir": str(Path(folder, RAY_FOLDER))}


def _variables(token: str) -> Mapping[str, str]:
    """Return what Ray's processes, and the workers that they start, inherit."""
    return {
        # Here alone: no file, command line or log holds the token.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # Ray's way of sparing other systems a question of their firewall: all is on the loopback.
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        # Where ranks and engines meet each other.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "VLLM_HOST_IP": LOOPBACK,
    }


def _read_environment_again() -> None:
    """Have Ray read mode and token anew in this process; it keeps what it found first."""
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _attribute(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
