"""Agreement of the ranks on how something ended, so that none waits for one that gave up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

from rpa_ray.actors.errors import UnusableRankError, WorkerError

T = TypeVar("T")


class WeightSyncError(RuntimeError):
    """A push failed on some rank as often as it was tried, or in a way that no try would change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _End(Generic[T]):
    """How a call ended on one rank."""

    value: T | None = None
    failure: str | None = None
    is_final: bool = False


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


def together(call: Callable[[], T]) -> list[T]:
    """Call on every rank and return what it gave on each, in the order of ranks; a collective.

    The call itself must be no collective: what fails on one rank would leave the others in it.

    Raises:
        WorkerError: On every rank, where the call failed on one and may not fail again.
        WeightSyncError: Where it failed on another in a way that no second try would change: of a
            wrong type or value, or the rank can be used no more. That rank raises its own error.
    """
    error: Exception | None = None
    own: _End[T] = _End()
    try:
        own = _End(value=call())
    except Exception as raised:
        error = raised
        own = _failed(error)
    ends = _of_every_rank(own)
    if error is not None and own.is_final:
        raise error
    failures = [
        (end.is_final, f"rank {rank}: {end.failure}")
        for rank, end in enumerate(ends)
        if end.failure is not None
    ]
    if failures:
        is_final, words = max(failures, key=lambda failure: failure[0])
        raise (WeightSyncError if is_final else WorkerError)(words) from error
    return [end.value for end in ends]  # type: ignore[misc]  # every call returned


def _failed(error: Exception) -> _End[Any]:
    words = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
    return _End(
        failure=words, is_final=isinstance(error, TypeError | ValueError | UnusableRankError)
    )


def _of_every_rank(own: T) -> list[T]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    boxes: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(boxes, own)
    return boxes
