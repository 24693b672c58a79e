import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from ray._private import grpc_utils  # now: an import must not count as time of an answer

from rpa_ray.cluster.address import (
    CLIENT_SERVER_QUESTION,
    HEAD_QUESTION,
    cluster_to_join,
    require_job_server,
    require_ray_cluster,
)
from rpa_ray.cluster.doctor import _cluster
from rpa_ray.config import ConfigError


@contextmanager
def grpc_server(method: str) -> Iterator[int]:
    """Serve one method, whatever it is asked; yield the port."""

    def answer(request: bytes, context: object) -> bytes:
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return grpc.unary_unary_rpc_method_handler(answer) if call.method == method else None

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@contextmanager
def http_server(answer: bytes) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def silent_listener() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as held:  # bound, so that nobody else gets it, and not listening
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def refusal(address: str, *, within_s: float = 5.0) -> str:
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        require_ray_cluster(address, "cluster.address")
    assert time.monotonic() - begun < within_s
    return str(caught.value)


@pytest.mark.parametrize(
    ("address", "variable", "joined"),
    [
        (None, None, None),
        (None, "", None),
        ("local", None, None),
        ("local", "a:1", None),
        (None, "local", None),
        (None, "a:1", ("RAY_ADDRESS", "a:1")),
        ("auto", "a:1", ("RAY_ADDRESS", "a:1")),
        ("auto", None, ("cluster.address", "auto")),
        ("b:2", "a:1", ("cluster.address", "b:2")),
    ],
)
def test_the_cluster_to_join_is_the_one_that_ray_would_take(
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    variable: str | None,
    joined: tuple[str, str] | None,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    found = cluster_to_join(address)
    assert (found and (found.key, found.value)) == joined


@pytest.mark.parametrize(
    "address",
    ["foo", "host:notaport", "host:0", "host:65536", ":6379", "ray://host", "a/b:1", "ray://"],
)
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    found = refusal(address, within_s=0.5)
    assert found.startswith(
        "cluster.address must have the form host:port, ray://host:port, auto or local, got "
        f"{address!r}."
    )


def test_the_address_of_a_dashboard_is_refused_with_what_it_is_for() -> None:
    assert "That is the address of launch/ray_job.sh;" in refusal("http://127.0.0.1:8265")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_closed_port_is_refused(closed_port: int, scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    assert refusal(address) == (
        f"cluster.address must name a Ray cluster that can be joined, got {address!r}. "
        "Connection refused. Start it (ray start --head), correct the address, or leave it out to "
        "use this machine alone."
    )


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_open_port_that_says_nothing_is_refused_in_time(scheme: str) -> None:
    with silent_listener() as port:
        assert "No answer of Ray within 2 s" in refusal(f"{scheme}127.0.0.1:{port}")


def test_a_host_name_that_takes_long_to_look_up_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(target: str, options: object) -> None:
        threading.Event().wait()

    monkeypatch.setattr(grpc_utils, "init_grpc_channel", slow)
    assert "No answer of Ray within 2 s" in refusal("somewhere:6379")


def test_no_import_uses_up_the_time_of_the_answer(closed_port: int) -> None:
    code = f"""
import sys, threading
from rpa_ray.cluster.address import require_ray_cluster

class Watch:
    def find_spec(name, path=None, target=None):
        if name in ("ray", "ray._private.grpc_utils", "grpc"):
            threads.add(threading.current_thread().name)

threads = set()
sys.meta_path.insert(0, Watch)
try:
    require_ray_cluster("127.0.0.1:{closed_port}", "cluster.address")
finally:
    print(*threads)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert "Connection refused" in run.stderr
    assert run.stdout.split() == ["MainThread"]


def test_a_server_that_is_not_ray_is_refused(closed_port: int) -> None:
    with http_server(b"{}") as port:
        assert "but not the Ray that was asked for" in refusal(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("scheme", "right", "wrong"),
    [
        ("", HEAD_QUESTION[0], CLIENT_SERVER_QUESTION[0]),
        ("ray://", CLIENT_SERVER_QUESTION[0], HEAD_QUESTION[0]),
    ],
)
def test_the_head_and_the_client_server_are_told_apart(scheme: str, right: str, wrong: str) -> None:
    with grpc_server(right) as port:
        require_ray_cluster(f"{scheme}localhost:{port}", "cluster.address")
    with grpc_server(wrong) as port:
        assert "but not the Ray" in refusal(f"{scheme}localhost:{port}")


def test_a_dashboard_that_answers_takes_jobs() -> None:
    with http_server(b'{"version": "4", "ray_version": "2.55.0"}') as port:
        require_job_server(f"http://127.0.0.1:{port}")


def test_no_dashboard_is_refused_in_time(closed_port: int) -> None:
    with http_server(b"<html>") as other, silent_listener() as silent:
        for port, reason in (
            (closed_port, "Connection refused."),
            (other, "Something answers there"),
            (silent, "No answer of Ray"),
        ):
            begun = time.monotonic()
            with pytest.raises(ConfigError, match=r"^RAY_API_SERVER_ADDRESS must name") as caught:
                require_job_server(f"http://127.0.0.1:{port}")
            assert reason in str(caught.value)
            assert time.monotonic() - begun < 5


def test_the_doctor_says_that_a_cluster_asks_for_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with grpc_server(HEAD_QUESTION[0]) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        found = _cluster()
    assert not found.ok
    assert found.text.startswith(f"127.0.0.1:{port} asks for no token")


def test_the_doctor_says_that_a_cluster_of_our_own_is_private(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _cluster().ok
    assert "behind a token" in _cluster().text
