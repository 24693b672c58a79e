"""When and how the policy's weights move: one collective ``push`` for all learner ranks.

    rank 0 has the engines up -> for each layer group: all gather, all pack, rank 0 sends -> done

The ranks agree on how each of these ended before any of them goes on: one that failed alone would
leave the others waiting in the next gather. So all give up together, and all try again together.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from rpa_ray.actors.engine import EngineConfig, TransferBackend
from rpa_ray.actors.errors import UnusableRankError, WorkerError
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.weight_sync.agreement import WeightSyncError, together

if TYPE_CHECKING:
    from rpa_ray.weight_sync.sending import Sender
    from rpa_ray.weight_sync.source import ShardedSource

MAX_ATTEMPTS = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushResult:
    """What one push did."""

    version: int
    seconds: float
    num_bytes: int
    num_attempts: int
    digests: dict[str, str]
    """SHA-256 of every weight that was sent, by checkpoint name; empty unless asked for."""


def choose_backend(*, on_gpus: bool, colocated: bool) -> TransferBackend:
    """Return how weights travel: memory handles on a shared GPU, NCCL between GPUs, else Ray.

    Args:
        on_gpus: Whether ranks and engines both work on GPUs.
        colocated: Whether each engine lies on a rank's own GPU.
    """
    if not on_gpus:
        return "object_store"
    return "ipc" if colocated else "nccl"


class WeightSync:
    """Serves the policy in the rollout engines; every rank holds one and calls it alike."""

    def __init__(
        self, *, pool: RolloutPool, source: "ShardedSource", engine: EngineConfig, rank: int
    ) -> None:
        self._pool = pool
        self._source = source
        self._engine = engine
        self._rank = rank
        self._sender = _sender(engine, pool)
        self._connected_engines: list[str | None] | None = None
        self.version: int | None = None
        """Version of the last complete push of this object."""

    def push(self, version: int, *, record_digests: bool = False) -> PushResult:
        """Make the engines serve the policy as it is now under ``version``; a collective.

        Restarted engines are built anew on the way. ``record_digests`` hashes every weight on both
        sides (about 1 s a GB).

        Raises:
            WeightSyncError: On every rank, if it still fails after several attempts, no other would
                change that, or the ranks lost each other.
            UnusableRankError: In its place on a rank that cannot go on.
            ValueError: In its place on rank 0, if an engine refuses what it is given.
        """
        started = time.perf_counter()
        failure = "nothing was tried"
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                self._attempt(version, record_digests)
            except WorkerError as error:
                failure = str(error)
                logger.warning("push %d failed (attempt %d): %s", version, attempt, failure)
                continue
            except RuntimeError as error:
                if isinstance(error, WeightSyncError | UnusableRankError):
                    raise
                raise WeightSyncError(
                    f"ranks must gather and agree in a push, got {type(error).__name__}: {error}. "
                    "One of them was lost, or is out of memory: see the logs of the others."
                ) from error
            self.version = version
            return PushResult(
                version=version,
                seconds=time.perf_counter() - started,
                num_bytes=self._source.num_bytes(),
                num_attempts=attempt,
                digests=self._source.digests,
            )
        raise WeightSyncError(
            f"push must succeed within {MAX_ATTEMPTS} attempts, got: {failure}. "
            "See the log of the worker that is named."
        )

    def _attempt(self, version: int, record_digests: bool) -> None:
        try:
            self._serve(version, record_digests)
        except Exception:
            self._disconnect()
            raise

    def _serve(self, version: int, record_digests: bool) -> None:
        self._on_main(self._connect)
        self._on_main(partial(self._pool.call_all, "start_weight_update", record_digests))
        self._source.begin_pass(record_digests=record_digests)
        for names, weights in self._source.iter_groups():
            if torch.cuda.is_available():
                # A gather runs on streams of its own. It has ended on this GPU before the group is
                # sent, and no rank begins the next before the group is there: collectives of two
                # groups in flight at once may each wait for the other's share of the GPU.
                torch.cuda.synchronize()
            packed = together(partial(self._sender.pack, weights))
            self._on_main(partial(self._sender.send, names, weights, packed))
        self._on_main(partial(self._pool.call_all, "finish_weight_update"))
        self._on_main(partial(self._pool.call_all, "update_weight_version", version))
        self._sender.let_go()

    def _on_main(self, call: Callable[[], object]) -> None:
        """Have rank 0 speak to the engines while the others wait for how it ends."""
        together(lambda: call() if self._rank == 0 else None)

    def _connect(self) -> None:
        engines = [status.engine_id for status in self._pool.load(self._engine)]
        if engines != self._connected_engines:
            self._disconnect()
            self._sender.connect()
            self._connected_engines = engines

    def _disconnect(self) -> None:
        self._connected_engines = None
        self._sender.close()


def _sender(engine: EngineConfig, pool: RolloutPool) -> "Sender":
    if engine.backend == "ipc":
        from rpa_ray.weight_sync.ipc import IpcSender

        return IpcSender(pool)
    if engine.backend == "nccl":
        from rpa_ray.weight_sync.nccl import NcclSender

        return NcclSender(pool, tensor_parallel_size=engine.tensor_parallel_size)
    from rpa_ray.weight_sync.object_store import ObjectStoreSender

    return ObjectStoreSender(pool)
