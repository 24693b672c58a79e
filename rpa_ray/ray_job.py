"""A config as a job of a Ray cluster: stage what is uploaded, submit, follow; for ray_job.sh."""

import argparse
import asyncio
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from rpa_ray.cluster.address import require_job_server
from rpa_ray.config import ConfigError
from rpa_ray.plan.files import DEFAULT_SCALE, read_with_parts
from rpa_ray.plan.load import KINDS, load_config
from rpa_ray.terminal import printable
from rpa_ray.world.shipped import SHIPPED

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[1]
UPLOADED = ("rpa_ray", "configs")
MAX_FILE_BYTES = 2**20
"""Larger files are no part of the package or the configs, whatever their name, save the models that
come with it."""
DEFAULT_SERVER = "http://127.0.0.1:8265"
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
POLL_EVERY_S = 2.0
START_LIMIT_S = 60.0
"""Longest wait for a node of a cluster that answers to be ready for jobs."""
ANSWER_LIMIT_S = 300.0
"""Longest wait for one answer of the dashboard, or for it to take what is uploaded."""
ASK_EVERY_S = 30.0
"""How often the dashboard is asked, beside a log that may be silent, whether it is still there."""


def main() -> None:
    """Submit the job that the command line names, and follow it unless told otherwise."""
    arguments, command_options = _parser().parse_known_args()
    try:
        sys.exit(_submit_and_follow(arguments, command_options))
    except ConfigError as error:
        print(f"error {printable(str(error))}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except (RuntimeError, OSError) as error:  # Ray would not take the job, or did not answer
        print(f"error {printable(str(error))}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def find_config(name: str) -> Path:
    """Return the config file of a path from the current folder, or else from the repository."""
    here, there = Path(name), ROOT / name
    return there if there.is_file() and not here.is_file() else here


def server_address() -> str:
    """Return the address that the environment names, or that of a cluster on this machine."""
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    return named.rstrip("/") if named.startswith("http") else DEFAULT_SERVER


def stage(
    folder: Path, config: Path, scale: str = DEFAULT_SCALE, overrides: Sequence[str] = ()
) -> Path:
    """Copy what the job needs into an empty folder; return the config's path from there.

    The config is written with the parts that it includes, so that it may come from anywhere. What
    is no config, whatever file a part names, is not uploaded.

    Raises:
        ConfigError: the config or one of its parts cannot be read, or cannot be run with these
            overrides.
    """
    load_config(config, overrides, scale)
    tree = read_with_parts(config, scale)
    for source in UPLOADED:
        shutil.copytree(ROOT / source, folder / source, ignore=_not_uploaded)
    staged = folder / "job" / f"{config.stem}.yaml"
    staged.parent.mkdir()
    staged.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return staged.relative_to(folder)


def kind_of(config: Path) -> str:
    """Return which command of rpa-ray takes the options for a config; ``run`` refuses others."""
    kind = yaml.safe_load(config.read_text(encoding="utf-8")).get("kind")
    return str(kind) if kind in KINDS else "run"


def _not_uploaded(folder: str, names: list[str]) -> list[str]:
    paths = {name: Path(folder) / name for name in names}
    return [
        name
        for name, path in paths.items()
        if name == "__pycache__"
        or not (path.is_dir() or path.is_file())
        or (path.is_file() and path.stat().st_size > MAX_FILE_BYTES and SHIPPED not in path.parents)
    ]


def is_this_machine(host: str) -> bool:
    """Return whether a host name or IP address is one of this machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.bind(address)  # works for own addresses only
        except OSError:
            return False
    return True


def exit_status(status: str, driver_exit_code: int | None) -> int:
    """Return the exit status for a job that ended, that of its command where there is one."""
    if status == "SUCCEEDED":
        return 0
    code = driver_exit_code or EXIT_FAILED
    return code if code > 0 else 128 - code  # as a shell counts a signal


def submit(client: "JobSubmissionClient", **job: Any) -> str:
    """Submit a job, also to a cluster that has just been started; return its id.

    Raises:
        RuntimeError: Ray would not take it, or no node was ready for jobs within START_LIMIT_S.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            # The dashboard answers some seconds before the agents of its nodes do.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_EVERY_S)


def job_client(server: str) -> "JobSubmissionClient":
    """Return Ray's client of a dashboard; none of its requests waits longer than ANSWER_LIMIT_S."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": ANSWER_LIMIT_S, **options})

    return Client(server)


def plain_text_warning(server: str) -> str:
    """Return what to know of a way on which anybody can read along, empty of any other."""
    parts = urlsplit(server)
    if parts.scheme == "https" or is_this_machine(parts.hostname or ""):
        return ""
    tunnel = f"ssh -L 8265:localhost:{parts.port or 80} {parts.hostname}"
    return (
        f"warning: {server} is plain http: whoever is on the way reads the job, its log and its "
        f"token, and can change them. Use https, or a tunnel ({tunnel}) and "
        f"RAY_API_SERVER_ADDRESS={DEFAULT_SERVER}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ray_job.sh",
        description="Run a config on a Ray cluster as a job, and follow it to its end.",
        epilog="Further options are those of rpa-ray for a config of its kind, as --resume.",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", metavar="FOLDER", help="default runs/NAME of this repository")
    parser.add_argument("--scale", default=DEFAULT_SCALE, help="as of rpa-ray run")
    parser.add_argument("--no-wait", action="store_true", help="submit only")
    parser.add_argument("--harden", action="store_true", help="as rpa-ray harden, of a run")
    return parser


def _submit_and_follow(arguments: argparse.Namespace, command_options: Sequence[str]) -> int:
    config = find_config(arguments.config)
    scale: str = arguments.scale
    name = config.stem if scale == DEFAULT_SCALE else f"{config.stem}-{scale}"
    name = f"harden-{name}" if arguments.harden else name
    output = Path(arguments.output or ROOT / "runs" / name).absolute()
    server = server_address()
    options = [word for override in arguments.set for word in ("--set", override)]
    options += ["--output", str(output), *command_options]
    with tempfile.TemporaryDirectory(prefix="rpa-ray-job-") as folder:
        staged = stage(Path(folder), config, scale, arguments.set)
        require_job_server(server)
        verb = "harden" if arguments.harden else kind_of(Path(folder) / staged)
        command = [_cluster_python(server), "-m", "rpa_ray", verb, str(staged), *options]
        # Ray prefers an address in the environment to the one that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = server
        if warning := plain_text_warning(server):
            print(printable(warning), file=sys.stderr)
        client = job_client(server)
        job = submit(
            client,
            entrypoint=shlex.join(command),
            submission_id=f"rpa-ray-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            runtime_env=_runtime_env(folder),
        )
        size_mib = sum(file.stat().st_size for file in Path(folder).rglob("*")) / 2**20
    print(f"submitted {job} to {server}, {size_mib:.1f} MiB before compression")
    print(f"{_how_to(server, job)}\nresults:  {output}", flush=True)
    return 0 if arguments.no_wait else _follow(client, server, job)


def _cluster_python(server: str) -> str:
    own = ROOT / ".venv" / "bin" / "python"
    here = own.exists() and is_this_machine(urlsplit(server).hostname or "")
    return os.environ.get("RPA_RAY_PYTHON") or (str(own) if here else "python")


def _runtime_env(working_dir: str) -> dict[str, Any]:
    text = (ROOT / "launch" / "runtime_env.yaml").read_text(encoding="utf-8")
    environment: dict[str, Any] = yaml.safe_load(text) or {}
    cache = Path(os.environ.get("RPA_RAY_CACHE") or ROOT / "runs" / "cache").absolute()
    variables = {**environment.get("env_vars", {}), "RPA_RAY_CACHE": str(cache)}
    return {**environment, "env_vars": variables, "working_dir": working_dir}


def _how_to(server: str, job: str) -> str:
    ray = shlex.quote(str(Path(sys.executable).with_name("ray")))
    return (
        f"follow:   {ray} job logs -f --address {server} {job}\n"
        f"stop:     {ray} job stop --address {server} {job}\n"
        f"workers:  logs at {server}/#/jobs/{job}, or in logs/ of Ray's session folders"
    )


def _follow(client: "JobSubmissionClient", server: str, job: str) -> int:
    """Print the job's log until its end; return its exit status."""
    from aiohttp import ClientError

    try:
        asyncio.run(_print_log(client, job))
        while not (info := client.get_job_info(job)).status.is_terminal():
            time.sleep(POLL_EVERY_S)
    except KeyboardInterrupt:
        print(f"\nnot followed any more; {job} goes on\n{_how_to(server, job)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (OSError, RuntimeError, ClientError) as error:
        print(f"lost {server}: {error!r}\n{job} may go on\n{_how_to(server, job)}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{job}: {info.status.lower()}")
    if info.driver_exit_code is None and info.status != "SUCCEEDED":
        print(info.message, file=sys.stderr)  # why its command was not even started, or stopped
    return exit_status(info.status, info.driver_exit_code)


async def _print_log(client: "JobSubmissionClient", job: str) -> None:
    """Print the log as it is written, for as long as the dashboard answers."""

    async def print_lines() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    log = asyncio.create_task(print_lines())
    while not (await asyncio.wait({log}, timeout=ASK_EVERY_S))[0]:
        # A machine that went without a word leaves the log silent for ever.
        await asyncio.to_thread(client.get_job_status, job)
    await log


if __name__ == "__main__":
    main()
