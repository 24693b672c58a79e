"""What somebody tries who reaches a machine where a Ray cluster runs, without its token.

python tests/intruder.py HOST PORT...    # prints, as JSON, what succeeded
"""

import json
import socket
import sys
import urllib.request
from http.client import HTTPException

import grpc  # type: ignore[import-untyped]

LIMIT_S = 5.0


def connects(host: str, port: int) -> bool:
    """Return whether anything answers at all."""
    try:
        with socket.create_connection((host, port), timeout=LIMIT_S):
            return True
    except OSError:
        return False


def orders(host: str, port: int) -> bool:
    """Return whether a job, which is a shell command, is taken by the node's agent there."""
    request = urllib.request.Request(
        f"http://{host}:{port}/api/job_agent/jobs/",
        data=json.dumps({"entrypoint": "true"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return "submission_id" in json.load(answer)
    except (OSError, ValueError, HTTPException):
        return False


def reads(host: str, port: int) -> bool:
    """Return whether the head of a cluster names its nodes, as it does to whoever may join it."""
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            return bool(ask(b"", timeout=LIMIT_S))
        except grpc.RpcError:
            return False


def main() -> None:
    host, *ports = sys.argv[1:]
    attempts = (connects, orders, reads)
    print(json.dumps({a.__name__: [p for p in map(int, ports) if a(host, p)] for a in attempts}))


if __name__ == "__main__":
    main()
