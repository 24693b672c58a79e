"""Which Ray cluster is joined, and whether it answers, asked before anything is started.

Ray itself waits half a minute for a cluster that is not there.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from rpa_ray.config import ConfigError
from rpa_ray.deadline import answer_within

RAY_LIMIT_S = 2.0
"""Longest wait for a cluster's answer."""
NO_ANSWER = f"No answer of Ray within {RAY_LIMIT_S:g} s"
OTHER_ANSWER = "Something answers there, but not the Ray that was asked for"
CLIENT_SCHEME = "ray://"
ADDRESS_FORMS = "host:port, ray://host:port, auto or local"
# The cheapest question that only Ray's head process (GCS) or its client server answers, in gRPC:
# the id of the cluster, and a ping (field `type`, value 6).
HEAD_QUESTION = ("/ray.rpc.NodeInfoGcsService/GetClusterId", b"")
CLIENT_SERVER_QUESTION = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterAddress:
    """A cluster that somebody asked to join."""

    key: str
    """What names it: ``cluster.address`` or ``RAY_ADDRESS``."""
    value: str


def cluster_to_join(address: str | None) -> ClusterAddress | None:
    """Return the cluster that ``cluster.address`` or RAY_ADDRESS names.

    None where one has to be started on this machine: nothing is named, or ``local`` is. As in Ray,
    ``auto`` leaves the choice to RAY_ADDRESS.
    """
    named = ClusterAddress(key="cluster.address", value=address or "")
    if named.value in ("", "auto") and os.environ.get("RAY_ADDRESS"):
        named = ClusterAddress(key="RAY_ADDRESS", value=os.environ["RAY_ADDRESS"])
    return None if named.value in ("", "local") else named


def require_ray_cluster(address: str, key: str) -> None:
    """Return if a Ray cluster answers at the address within RAY_LIMIT_S.

    Raises:
        ConfigError: the address has no known form, or no Ray answers; ``key`` is what names it.
    """
    if address != "auto" and not _has_port(address.removeprefix(CLIENT_SCHEME)):
        remedy = "Correct it, or leave it out to use this machine alone."
        if address.startswith("http"):
            remedy = "That is the address of launch/ray_job.sh; " + remedy.lower()
        raise ConfigError(key, f"have the form {ADDRESS_FORMS}", address, remedy)
    from ray._private.grpc_utils import init_grpc_channel  # knows Ray's settings of TLS and tokens

    problem = _problem(address, init_grpc_channel)
    if problem is not None:
        raise refused_cluster(address, key, problem)


def require_job_server(address: str) -> None:
    """Return if the dashboard of a Ray cluster, which takes jobs, answers at the http address.

    Raises:
        ConfigError: it does not within RAY_LIMIT_S.
    """
    problem = _in_time(lambda: _ask_job_server(address))
    if problem is not None:
        raise ConfigError(
            "RAY_API_SERVER_ADDRESS",
            "name the dashboard of a Ray cluster",
            address,
            f"{problem}. Start a cluster (ray start --head) or set the variable.",
        )


def refused_cluster(address: str, key: str, problem: str) -> ConfigError:
    """Return the error for a cluster that cannot be joined."""
    return ConfigError(
        key,
        "name a Ray cluster that can be joined",
        address,
        f"{problem}. Start it (ray start --head), correct the address, or leave it out to use this "
        "machine alone.",
    )


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    well_formed = bool(host) and not set(host) & set("/ \t\n")
    return well_formed and port.isdecimal() and 0 < int(port) < 2**16


def asks_for_no_token(address: str) -> bool:
    """Return whether a Ray cluster answers whoever reaches it: it would do what it is told.

    False also where nothing answers in time.
    """
    import grpc  # type: ignore[import-untyped]

    return _problem(address, grpc.insecure_channel) is None


def _problem(address: str, open_channel: Callable[..., Any]) -> str | None:
    """Return why there is no answer through such a channel, None where there is one."""
    # Here and not in the thread: an import must not use up the time that Ray has for its answer.
    from ray._private.services import get_ray_address_from_environment

    if address == "auto":
        try:
            address = get_ray_address_from_environment("auto", None)
        except ConnectionError:
            return "No Ray cluster runs on this machine"
    question = HEAD_QUESTION
    if address.startswith(CLIENT_SCHEME):
        address, question = address.removeprefix(CLIENT_SCHEME), CLIENT_SERVER_QUESTION
    return _in_time(lambda: _ask(open_channel, address, *question))


def _in_time(ask: Callable[[], str | None]) -> str | None:
    """Return the problem that ``ask`` finds, or that it takes too long."""
    try:
        return answer_within(RAY_LIMIT_S + 0.5, ask)
    except TimeoutError:
        return NO_ANSWER


def _ask(open_channel: Callable[..., Any], target: str, method: str, question: bytes) -> str | None:
    """Return why a gRPC server does not answer the question, None where it does."""
    import grpc

    try:
        with open_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            channel.unary_unary(method)(question, timeout=RAY_LIMIT_S)
    except grpc.RpcError as error:
        details = str(error.details())
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return NO_ANSWER
        if error.code() is grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
            return OTHER_ANSWER
        return details.rpartition(": ")[2].rstrip("].")  # the cause stands last
    return None


def _ask_job_server(address: str) -> str | None:
    """Return why no dashboard answers, None where one does."""
    try:
        url = f"{address}/api/version"
        with urllib.request.urlopen(url, timeout=RAY_LIMIT_S) as answer:  # noqa: S310 - http(s)
            return None if "ray_version" in json.load(answer) else OTHER_ANSWER
    except urllib.error.HTTPError as error:
        # Who has to name a token is told so by Ray when the job is submitted.
        return None if error.code in (401, 403) else OTHER_ANSWER
    except OSError as error:
        cause = getattr(error, "reason", error)
        return NO_ANSWER if isinstance(cause, TimeoutError) else str(cause).rpartition("] ")[2]
    except (ValueError, TypeError, HTTPException):
        return OTHER_ANSWER
