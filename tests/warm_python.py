"""Python that has done its imports: each process of it is forked from one that did them.

Where a program can be told which Python to start, it is told a client's command. The client has a
forked process run the script in its stead, and ends with it.
"""

import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def warm_python(address: Path, modules: Sequence[str]) -> Iterator[str]:
    """Return the command of a Python that has imported ``modules``; ``address`` is a new file.

    They are imported in the environment of the first client, for libraries read it at import.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        descriptor = server.fileno()
        command = [sys.executable, __file__, "server", str(descriptor), *modules]
        # It ends with its input: with this process, or with this context.
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[descriptor]):
            server.close()  # so that clients are refused where it ended
            yield shlex.join([sys.executable, "-S", "-E", __file__, "client", str(address)])


def _serve(descriptor: str, *modules: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a forked process ended
    with socket.socket(fileno=int(descriptor)) as server:
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            client, _ = server.accept()
            _, output, _, _ = socket.recv_fds(client, 1, 2)
            with client.makefile() as told:
                script, variables = json.load(told)
            os.environ.clear()
            os.environ.update(variables)
            for module in modules:
                importlib.import_module(module)
            gc.freeze()  # or every collection in a forked process would copy what was imported
            if os.fork() == 0:
                server.close()
                _run(script, output)
                return
            client.close()
            for number in output:
                os.close(number)


def _run(script: Sequence[str], output: Sequence[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in enumerate(output, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = list(script)
    runpy.run_path(script[0], run_name="__main__")


def _be_client(address: str, *script: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"\0"], [1, 2])
        server.sendall(json.dumps([script, dict(os.environ)]).encode())
        server.shutdown(socket.SHUT_WR)
        server.recv(1)  # nothing is sent: it ends with the forked process


if __name__ == "__main__":
    {"server": _serve, "client": _be_client}[sys.argv[1]](*sys.argv[2:])
