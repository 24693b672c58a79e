"""Sender of weights to engines on GPUs of their own: broadcasts over NCCL.

vLLM's receiver, communicator and packing are at work. Its sender is not used: it waits for the
engines without a limit, and where one dies the broadcast never ends.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict
from typing import TYPE_CHECKING

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer import nccl_common, packed_tensor
from vllm.utils.network_utils import get_open_port

from rpa_ray.actors.errors import UnusableRankError, WorkerError
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.weight_sync.sending import Packed, layout

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

GRACE_S = 30.0
"""Longest wait for one side after the other has ended, and for an engine to leave a transfer."""

logger = logging.getLogger(__name__)


class NcclSender:
    """Broadcasts from the main rank; the other ranks only take part in gathers."""

    def __init__(self, pool: RolloutPool, *, tensor_parallel_size: int) -> None:
        self._pool = pool
        self._tensor_parallel_size = tensor_parallel_size
        self._group: PyNcclCommunicator | None = None
        self._abort: weakref.finalize[..., NcclSender] | None = None

    def connect(self) -> None:
        """Meet the engines in a group of which this process is rank 0."""
        info = nccl_common.NCCLWeightTransferInitInfo(
            master_address=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            master_port=get_open_port(),
            rank_offset=1,
            world_size=1 + len(self._pool) * self._tensor_parallel_size,
            packed=True,
        )
        requests = [
            {**asdict(info), "rank_offset": 1 + index * self._tensor_parallel_size}
            for index in range(len(self._pool))
        ]

        def meet() -> None:
            self._group = nccl_common.trainer_init(info)
            # Also where nobody closes it: NCCL keeps memory of the GPU until then.
            self._abort = weakref.finalize(self, self._group.destroy)
            self._abort.atexit = False

        self._with_engines(
            "init_weight_transfer_engine",
            [({"init_info": request},) for request in requests],
            meet,
        )

    def pack(self, weights: Sequence[Tensor]) -> Packed:
        """Do nothing: the main rank sends from where the weights lie."""
        return {}

    def send(
        self, names: Sequence[str], weights: Sequence[Tensor], packed: Sequence[Packed]
    ) -> None:
        """Broadcast a layer group while every engine receives it."""
        group = self._group
        assert group is not None

        def broadcast() -> None:
            packed_tensor.packed_nccl_broadcast_producer(
                iterator=iter(zip(names, weights, strict=True)),
                group=group,
                src=0,
                post_iter_func=lambda item: item[1],
            )

        request = ({"update_info": layout(names, weights)},)
        self._with_engines("update_weights", [request] * len(self._pool), broadcast)

    def let_go(self) -> None:
        """Do nothing: no group is held."""

    def close(self) -> None:
        """Abort the communicator: a broadcast that is under way ends."""
        if self._abort is not None:
            self._abort()
        self._group = None

    def _with_engines(
        self, method: str, requests: Sequence[tuple[object]], own_side: Callable[[], None]
    ) -> None:
        """Have ``own_side`` done while the engines answer ``method``, their side of it.

        Inside NCCL nothing has a limit, so the call to the engines, which has one, is the limit of
        both: NCCL is waited for no longer than ``GRACE_S`` after them.

        Raises:
            WorkerError: An engine was lost, or this side failed; the group is left.
            UnusableRankError: This side cannot be ended.
        """
        own = _in_thread(own_side)
        own.add_done_callback(self._leave_if_failed)
        try:
            self._pool.call_each(method, requests)
            if not wait([own], GRACE_S).done:
                raise WorkerError(
                    f"{method} must end on the learner within {GRACE_S:g} s after the engines, got "
                    "no end. Check the connection between the GPUs (NCCL_DEBUG=INFO)."
                )
            own.result()
        except Exception as error:
            self.close()
            # An engine that waits in NCCL for one that died cannot be told to stop.
            self._pool.restart_silent(GRACE_S)
            if not wait([own], GRACE_S).done:
                raise UnusableRankError(
                    f"{method} must end within {GRACE_S:g} s after it was aborted, got a thread "
                    f"that is still in NCCL. The ranks have to be started again. Cause: {error}"
                ) from error
            self.close()  # a group that was met only now
            raise

    def _leave_if_failed(self, own: "Future[None]") -> None:
        """Let the engines, which would wait for this side, see that it has failed."""
        if (error := own.exception()) is not None:
            logger.warning("weight transfer failed on the learner: %s", error)
            self.close()


def _in_thread(call: Callable[[], None]) -> "Future[None]":
    """Return the end to come of a call in a thread that does not keep the process alive."""
    future: Future[None] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # a new thread begins on the first
            call()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="weight-transfer", daemon=True).start()
    return future
