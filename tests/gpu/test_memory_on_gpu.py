"""What a rank holds on a GPU against what `plan` says of it."""

from collections.abc import Iterator

import pytest
import torch
from gpu_scene import KEPT, Sized, sized

NUM_ROWS, NUM_TOKENS = 8, 256
TOLERANCE = 0.1
"""Share by which the allocator's bytes may differ: blocks, and DeepSpeed's small buffers."""

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("rank_on_gpu")]


@pytest.fixture(scope="module")
def rank() -> Iterator[tuple[Sized, int]]:
    """Return 0.4 billion parameters under ZeRO-1, and the bytes that others held before."""
    before = torch.cuda.memory_allocated()
    yield sized(width=1536, num_layers=24, num_tokens=NUM_ROWS * NUM_TOKENS), before


def test_what_stays_between_updates_is_what_is_planned(
    rank: tuple[Sized, int], place: torch.device
) -> None:
    """Weights, gradients, fp32 masters and Adam's moments: allocated after an update and planned.

    DeepSpeed may give gradients back between updates: the bytes lie between those without and
    those with them.
    """
    found, before = rank
    found.update(place, num_rows=NUM_ROWS, num_tokens=NUM_TOKENS)
    allocated = torch.cuda.memory_allocated() - before
    without_gradients = [name for name in KEPT if name != "gradients"]
    assert allocated >= (1 - TOLERANCE) * found.planned_bytes(without_gradients)
    assert allocated <= (1 + TOLERANCE) * found.planned_bytes(KEPT)


def test_an_update_takes_no_more_than_is_planned(
    rank: tuple[Sized, int], place: torch.device
) -> None:
    """The highest mark of an update stays below the plan, which leaves out nothing that is large.

    Nor is the plan more than twice of it: else cells that fit would be refused.
    """
    found, before = rank
    torch.cuda.reset_peak_memory_stats()
    found.update(place, num_rows=NUM_ROWS, num_tokens=NUM_TOKENS)
    peak = torch.cuda.max_memory_allocated() - before
    planned = found.planned_bytes([name for name in found.planned if name != "context"])
    assert planned / 2 <= peak <= (1 + TOLERANCE) * planned
