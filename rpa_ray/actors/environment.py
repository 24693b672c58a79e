"""What worker processes are given in their environment."""

import os
from collections.abc import Mapping


def process_environment(*, num_threads: int, has_gpu: bool) -> Mapping[str, str]:
    """Return the variables of every worker process.

    On a CPU, where tensors are the process's own memory, what is freed stays with it: glibc gives
    blocks of a size that occurs at every step back to the system, which has to clear each of their
    pages before the next step has them again.

    Args:
        num_threads: CPU threads of the process.
        has_gpu: Whether it works on a GPU.
    """
    environment = {"OMP_NUM_THREADS": str(num_threads)}
    if not has_gpu:
        # 32 MiB is the largest that glibc takes.
        environment |= {
            "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
            "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
        }
    return environment


def guest_environment(gpu_id: str) -> Mapping[str, str]:
    """Return the variables of a process that works on the GPU of another, and reserves none.

    Ray would hide every GPU from it.
    """
    return {"CUDA_VISIBLE_DEVICES": gpu_id, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


LIBRARY_ENVIRONMENT = {
    # A thread that is still at work when the cluster is left must not start another. Ray reads it
    # where it is imported.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quieten_libraries() -> None:
    """Set what libraries read from the environment where they are imported; what is set stays."""
    for name, value in LIBRARY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
