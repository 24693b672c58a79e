"""This process among those of a learner, and what they do together.

A push of weights has collectives of its own, in `weight_sync.agreement`.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rpa_ray.types import Metrics, is_maximum

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Rank and size of the learner group, with the few collectives that the loop needs."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def current(cls) -> "Ranks":
        """Return this process's place in the initialised process group."""
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=device)

    @property
    def is_main(self) -> bool:
        """Return whether this rank writes files and talks to the pools alone."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, on the tensor's device; all ranks call it equally often."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        # Of offloaded masters it may be in main memory, which a number on a GPU could not scale.
        return total.to(tensor.device)

    def mean(self, metrics: Metrics) -> Metrics:
        """Return the mean of each metric over ranks, of maxima the largest.

        Every rank must call it with the same keys. A value that is not finite on one rank shows.
        """
        if self.size == 1 or not metrics:
            return metrics
        keys = sorted(metrics)
        own = torch.tensor([metrics[k] for k in keys], dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        # Gathered, since a reduction of maxima may lose a NaN.
        dist.all_gather(rows, own)
        table = torch.stack(rows)
        means, largest = table.mean(dim=0).tolist(), table.amax(dim=0).tolist()
        found = {
            k: top if is_maximum(k) else mean
            for k, mean, top in zip(keys, means, largest, strict=True)
        }
        return {k: found[k] for k in metrics}

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, values: list[T]) -> list[list[T]]:
        """Return the values of every rank, in the order of the ranks."""
        if self.size == 1:
            return [values]
        boxes: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(boxes, values)
        return boxes

    def gather_rows(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks in their order; only this rank's are differentiable.

        Every rank must call it with a tensor of the same shape.
        """
        if self.size == 1:
            return own
        own = own.to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.detach().contiguous())
        return torch.cat([*parts[: self.rank], own, *parts[self.rank + 1 :]])

    def part(self, rows: list[T]) -> list[T]:
        """Return this rank's contiguous part of a global batch.

        Raises:
            ValueError: the batch does not divide over the ranks.
        """
        if len(rows) % self.size:
            raise ValueError(
                f"batch_size must be a multiple of cluster.num_ranks ({self.size}), got "
                f"{len(rows)}. Change one of the two."
            )
        share = len(rows) // self.size
        return rows[self.rank * share : (self.rank + 1) * share]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()
