"""What the senders of the three backends have in common: each carries one layer group at a time."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Packed = dict[str, tuple[Any, ...]]
"""Where engines find a rank's copy of a layer group, by GPU; empty where they need none."""


class Sender(Protocol):
    """One end of a weight transfer; every rank holds one, the main rank alone speaks to engines."""

    def connect(self) -> None:
        """Have the engines ready to receive; on the main rank.

        Raises:
            WorkerError: An engine was lost on the way.
        """
        ...

    def pack(self, weights: Sequence[Tensor]) -> Packed:
        """Prepare a layer group on this rank; it stays as it is until the next one is packed."""
        ...

    def send(
        self, names: Sequence[str], weights: Sequence[Tensor], packed: Sequence[Packed]
    ) -> None:
        """Have every engine load a layer group that all ranks packed; on the main rank.

        Raises:
            WorkerError: An engine was lost on the way.
        """
        ...

    def let_go(self) -> None:
        """Give the memory of the last group back; on every rank, after the engines have all."""
        ...

    def close(self) -> None:
        """Give up the connection and the last group; what is under way ends."""
        ...


def layout(names: Sequence[str], weights: Sequence[Tensor]) -> dict[str, object]:
    """Return what vLLM's receivers are told of a layer group."""
    return {
        "names": list(names),
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in weights],
        "shapes": [list(weight.shape) for weight in weights],
    }


def flat_bytes(weights: Sequence[Tensor]) -> Tensor:
    """Return the bytes of all weights in one buffer on their device."""
    return torch.cat([weight.view(-1).view(torch.uint8) for weight in weights])
