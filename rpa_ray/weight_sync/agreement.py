"""Agreement of the ranks on whether something failed, so that none waits for one that gave up."""

import torch
import torch.distributed as dist


def any_rank_failed(failed: bool) -> bool:
    """Return True on every rank where ``failed`` is True on at least one; a collective.

    Without a process group it is the rank's own answer.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return failed
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(failed)], dtype=torch.int32, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
