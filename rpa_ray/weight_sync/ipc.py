"""Sender of weights to engines on the ranks' own GPUs: they read a rank's memory by a handle.

vLLM's receiver is at the other end. Its sender is not used: it has the ranks meet inside each
chunk, where one that lost an engine leaves the others waiting, and refuses a weight above its
buffer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from rpa_ray.actors.pools import RolloutPool
from rpa_ray.weight_sync.sending import Packed, flat_bytes, layout


class IpcSender:
    """Exports each layer group as one buffer, which every engine copies from its own GPU."""

    def __init__(self, pool: RolloutPool) -> None:
        self._pool = pool
        self._buffer: Tensor | None = None

    def connect(self) -> None:
        """Tell the engines that a group comes as one buffer."""
        self._pool.call_all("init_weight_transfer_engine", {"init_info": {"packed": True}})

    def pack(self, weights: Sequence[Tensor]) -> Packed:
        """Return the handle of a buffer with the group's bytes, by the GPU that it lies on."""
        self._buffer = flat_bytes(weights)
        torch.cuda.current_stream().synchronize()  # engines read it outside this stream
        _, handle = reduce_tensor(self._buffer)  # type: ignore[no-untyped-call]
        # The group before: engines let go of it when they open the next.
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
        return {str(torch.cuda.get_device_properties(self._buffer.device).uuid): handle}

    def send(
        self, names: Sequence[str], weights: Sequence[Tensor], packed: Sequence[Packed]
    ) -> None:
        """Have every engine copy the group from the rank on its own GPU."""
        handles: Packed = {}
        for of_rank in packed:
            handles |= of_rank
        info = {
            **layout(names, weights),
            "ipc_handles": handles,
            "tensor_sizes": [weight.nbytes for weight in weights],
        }
        self._pool.call_all("update_weights", {"update_info": info})

    def let_go(self) -> None:
        """Free the last buffer, which engines have let go of at the end of the push."""
        self._buffer = None
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Free the last buffer; there is no connection."""
        self.let_go()
