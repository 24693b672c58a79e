"""Weight transfer through Ray's object store, for machines without NCCL: both ends of it.

A layer group travels as one flat byte buffer. Importing this module registers the receiver with
vLLM's factory under ``object_store``.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rpa_ray.actors.pools import RolloutPool
from rpa_ray.weight_sync.sending import Packed, flat_bytes, layout

BACKEND = "object_store"
FETCH_LIMIT_S = 600.0
"""Longest wait for a layer group that is on another node, or was lost with it."""


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on: each update says how it is laid out."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One layer group: the layout of its buffer, and the buffer as an object reference."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    buffer: list["ray.ObjectRef[NDArray[np.uint8]]"]
    """One reference, in a list: Ray hands on a reference that is not an argument of its own."""


class ObjectStoreReceiver(
    WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]  # type: ignore[misc]
):
    """Loads layer groups from the object store into a running engine."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Do nothing: there is no connection to open."""

    def start_weight_update(self) -> None:
        """Prepare every layer to be loaded anew, without touching what kernels point at."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Load one layer group."""
        buffer = ray.get(update_info.buffer[0], timeout=FETCH_LIMIT_S)
        self.model.load_weights(_unpacked(buffer, update_info))

    def finish_weight_update(self) -> None:
        """Put every layer back into service."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_heads(self.model)

    def shutdown(self) -> None:
        """Do nothing: nothing is held."""


class ObjectStoreSender:
    """Puts layer groups into the object store and tells the engines to load them."""

    def __init__(self, pool: RolloutPool) -> None:
        self._pool = pool

    def connect(self) -> None:
        """Tell the engines; there is no connection to open."""
        self._pool.call_all("init_weight_transfer_engine", {"init_info": {}})

    def pack(self, weights: Sequence[Tensor]) -> Packed:
        """Do nothing: the main rank sends from where the weights lie."""
        return {}

    def send(
        self, names: Sequence[str], weights: Sequence[Tensor], packed: Sequence[Packed]
    ) -> None:
        """Have every engine load a layer group from the object store."""
        buffer = ray.put(flat_bytes(weights).cpu().numpy())
        info = {**layout(names, weights), "buffer": [buffer]}
        self._pool.call_all("update_weights", {"update_info": info})

    def let_go(self) -> None:
        """Do nothing: nothing is held."""

    def close(self) -> None:
        """Do nothing: nothing is held."""


def _repack_tied_heads(model: Module) -> None:
    """Let output heads that share the embedding's weight take note of its new values.

    On a CPU a linear layer computes from a repacked copy of its weight. A tied head is no name of
    the checkpoint, so reloading leaves its copy as it was when the engine was built.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    embedded = {layer.weight.data_ptr() for layer in layers if layer not in heads}
    for head in heads:
        if head.weight.data_ptr() in embedded:
            head.quant_method.process_weights_after_loading(head)


def _unpacked(
    buffer: NDArray[np.uint8], update_info: ObjectStoreUpdateInfo
) -> list[tuple[str, Tensor]]:
    """Return the named weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given .* is not writable")
        flat = torch.from_numpy(buffer)
    weights: list[tuple[str, Tensor]] = []
    start = 0
    for name, dtype_name, shape in zip(
        update_info.names, update_info.dtype_names, update_info.shapes, strict=True
    ):
        dtype: torch.dtype = getattr(torch, dtype_name)
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        # A copy, for a wide type must not start at an odd byte and the buffer is read-only.
        weights.append((name, flat[start:stop].clone().view(dtype).view(shape)))
        start = stop
    return weights


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreReceiver)
