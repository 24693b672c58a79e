"""What a checkpoint costs: its bytes, and how long a training waits while it is made."""

import os
import tempfile
import time
from itertools import chain
from pathlib import Path

import torch

from rpa_ray.cluster.resources import available_memory_gib
from rpa_ray.learner.aside import in_memory
from rpa_ray.learner.ranks import Ranks

PROBE_BYTES = 2**26
"""Of what is made to measure a speed; what is not larger takes no time that matters."""


def state_bytes(module: torch.nn.Module) -> int:
    """Return how many bytes weights, fp32 masters and two moments of what is trained have.

    Of a checkpoint that is nearly all, whatever the number of ranks.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    # ZeRO-3 leaves a parameter empty and keeps its size in ``ds_numel``.
    return sum(getattr(p, "ds_numel", p.numel()) * (p.element_size() + 3 * 4) for p in trained)


def has_room(num_bytes: int, ranks: Ranks) -> bool:
    """Return whether a checkpoint is worth a copy and every rank sees memory for two of it.

    All ranks get one answer. The bytes of all of them count on each, as if they were on one node:
    once for the copy, once for the tensors that are on their way from a GPU and what parts keep.
    """
    room = num_bytes > PROBE_BYTES and available_memory_gib() * 2**30 >= 2 * num_bytes
    return all(chain.from_iterable(ranks.gather([room])))


def writing_s(folder: Path, num_bytes: int) -> float:
    """Return about how many seconds it takes to put so many bytes on the disk of a folder.

    What is less than the 64 MiB that are written to find out counts as 0.
    """
    if num_bytes <= PROBE_BYTES:
        return 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        # Not zeros, which some file systems do not store.
        block = os.urandom(PROBE_BYTES)
        started = time.monotonic()
        probe.write(block)
        probe.flush()
        os.fsync(probe.fileno())
        return (time.monotonic() - started) * num_bytes / PROBE_BYTES


def copying_s(device: torch.device, num_bytes: int) -> float:
    """Return about how many seconds it takes to copy so many bytes from a device into memory."""
    block = torch.ones(PROBE_BYTES, dtype=torch.uint8, device=device)
    started = time.monotonic()
    in_memory(block)
    return (time.monotonic() - started) * num_bytes / PROBE_BYTES
