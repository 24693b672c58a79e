"""The processor, and the type of weights it computes: asked of torch, checked by measuring."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rpa_ray.config import AskedDtype, Dtype

if TYPE_CHECKING:
    import torch

CONTRADICTION = 3.0
"""A type that takes more than so many times the other's time was not the one to choose."""
_X86 = ("x86_64", "AMD64")
_ROWS, _INPUTS, _OUTPUTS = 256, 128, 512
_TRIES_S = 0.02
"""Least time for which each type is tried, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeDtype:
    """The type of weights that hardware computes, and why."""

    dtype: Dtype
    reason: str
    factor: float | None
    """How many times as long bfloat16 takes as float32, measured; None on a GPU."""

    def doubt(self, asked: AskedDtype) -> str:
        """Return what the measurement has against what was asked for; nothing if it agrees.

        float32 that somebody asked for is what they wanted, however long it takes.
        """
        dtype = self.dtype if asked == "auto" else asked
        if self.factor is None:
            return ""
        if dtype == "bfloat16" and self.factor > CONTRADICTION:
            return f"bfloat16 takes {self.factor:.0f} times as long as float32 here (measured)"
        if asked == "auto" and dtype == "float32" and self.factor < 1 / CONTRADICTION:
            return f"float32 takes {1 / self.factor:.0f} times as long as bfloat16 here (measured)"
        return ""


def native_dtype(on_gpu: bool) -> NativeDtype:
    """Return bfloat16 where the hardware of this process computes it, float32 elsewhere.

    Args:
        on_gpu: Whether the weights lie on a GPU, not with the CPU.
    """
    if on_gpu:
        dtype, reason = _of_gpu()
        return NativeDtype(dtype=dtype, reason=reason, factor=None)
    dtype, reason = _of_cpu()
    return NativeDtype(dtype=dtype, reason=reason, factor=bfloat16_factor())


def _of_gpu() -> tuple[Dtype, str]:
    import torch

    if not torch.cuda.is_available():
        return "bfloat16", "GPUs compute it; none is here to be asked"
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16", f"{name} computes it"
    return "float32", f"{name} has no bfloat16"


def _of_cpu() -> tuple[Dtype, str]:
    """Return the answer of the processor, of torch's own kernels, and of oneDNN's, in this order.

    The kernels follow ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA: where somebody has switched
    either below AVX-512, bfloat16 is emulated whatever the processor has.
    """
    import torch

    if platform.machine() not in _X86:
        return "float32", f"bfloat16 is not known to be fast on {platform.machine()}"
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "float32", "this CPU has no bfloat16 instructions"
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return "float32", f"torch computes with {capability} here (ATEN_CPU_CAPABILITY)"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "float32", "oneDNN may not compute with AVX-512 here (ONEDNN_MAX_CPU_ISA)"
    return "bfloat16", "this CPU has bfloat16 instructions"


def bfloat16_factor() -> float:
    """Return how many times as long bfloat16 takes as float32 on this CPU, with one thread.

    What is timed is a linear layer of the embedded models' size, forward and backward: for some
    50 ms, 200 ms where bfloat16 is emulated. Measured: 0.1 to 0.4 with instructions for it, 10 to
    30 without.
    """
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _best_s(_linear_step(torch.bfloat16)) / _best_s(_linear_step(torch.float32))
    finally:
        torch.set_num_threads(num_threads)


def _linear_step(dtype: "torch.dtype") -> Callable[[], object]:
    import torch

    layer = torch.nn.Linear(_INPUTS, _OUTPUTS, dtype=dtype)
    rows = torch.ones(_ROWS, _INPUTS, dtype=dtype)
    return lambda: layer(rows).sum().backward()


def _best_s(step: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls; the first sets up and does not count."""
    step()
    times: list[float] = []
    while len(times) < 2 or sum(times) < _TRIES_S:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return min(times)


@cache
def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    known = ("model name", "model\t", "cpu family", "stepping")
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(known)]
    return " ".join(dict.fromkeys(named)) or platform.machine()


def why_dtype(wanted: AskedDtype, dtype: AskedDtype, native: NativeDtype | None) -> str:
    """Return why weights are of a type.

    Args:
        wanted: ``model.dtype`` as it was written.
        dtype: What it became; ``auto`` where nobody has asked yet.
        native: What the hardware of the ranks computes, None where nobody has asked it yet.
    """
    if wanted != "auto":
        return "model.dtype"
    if native is None:
        return "decided on the ranks' node"
    if dtype != native.dtype:
        return "auto: ZeRO stage 0 keeps no float32 masters beside bfloat16 weights"
    return f"auto: {native.reason}"
