"""DeepSpeed, set up for this machine.

On CPU it is guarded against its grouped asynchronous all-gather, which waits only for its last
handle: right on an in-order CUDA stream, silently wrong on gloo.
"""

import os
from typing import Any

import torch
from torch import Tensor


def import_deepspeed() -> None:
    """Import DeepSpeed set up for this machine; safe to call again."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    if not torch.cuda.is_available():
        # Shared-memory all-reduce for inference: unused here, yet compiled (30 s) if "available".
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        guard_gloo_gathers(deepspeed.comm)


def guard_gloo_gathers(comm: Any) -> None:
    """Make each asynchronous all-gather wait for itself; needed on gloo, applied once."""
    original = comm.all_gather_into_tensor
    if getattr(original, "waits_for_itself", False):
        return

    def waiting(
        output_tensor: Tensor,
        tensor: Tensor,
        group: Any = None,
        async_op: bool = False,
        **rest: Any,
    ) -> Any:
        handle = original(output_tensor, tensor, group=group, async_op=async_op, **rest)
        if async_op and handle is not None:
            handle.wait()
        return handle

    waiting.waits_for_itself = True  # type: ignore[attr-defined]
    comm.all_gather_into_tensor = waiting
