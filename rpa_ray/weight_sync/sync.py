"""When and how the policy's weights move: one collective ``push`` for all learner ranks.

    push: rank 0 has the engines up -> ranks agree -> all gather, rank 0 sends -> ranks agree

A rank that failed alone would leave the others waiting in a gather, so every rank learns of a
failure at the same two points and all try again together.
"""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rpa_ray.actors.errors import WorkerError
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.actors.rollout import EngineConfig, TransferBackend
from rpa_ray.weight_sync.agreement import any_rank_failed

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

    from rpa_ray.weight_sync.source import ShardedSource

MAX_ATTEMPTS = 5

logger = logging.getLogger(__name__)


class WeightSyncError(RuntimeError):
    """A push failed on some rank as often as it was tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushResult:
    """What one push did."""

    version: int
    seconds: float
    num_bytes: int
    num_attempts: int
    digests: dict[str, str]
    """SHA-256 of every weight that was sent, by checkpoint name; empty unless asked for."""


def choose_backend(*, cuda_available: bool, colocated: bool) -> TransferBackend:
    """Return how weights travel: memory handles on a shared GPU, NCCL between GPUs, else Ray."""
    if not cuda_available:
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
        self._client = PoolClient(pool, engine.tensor_parallel_size)
        self._sender: TrainerWeightTransferEngine[TrainerInitInfo] | None = None
        self._connected_engines: list[str | None] | None = None
        self.version: int | None = None
        """Version of the last complete push of this object."""

    def push(self, version: int, *, record_digests: bool = False) -> PushResult:
        """Make the engines serve the policy as it is now under ``version``; a collective.

        Restarted engines are built anew on the way. ``record_digests`` hashes every weight on both
        sides (about 1 s a GB).

        Raises:
            WeightSyncError: On every rank, if it still fails after several attempts.
        """
        started = time.perf_counter()
        failure = "nothing was tried"
        for attempt in range(1, MAX_ATTEMPTS + 1):
            outcome = self._attempt(version, record_digests)
            if outcome is None:
                self.version = version
                return PushResult(
                    version=version,
                    seconds=time.perf_counter() - started,
                    num_bytes=self._source.num_bytes(),
                    num_attempts=attempt,
                    digests=self._source.digests,
                )
            failure = outcome
            logger.warning("push of version %d failed (attempt %d): %s", version, attempt, failure)
        raise WeightSyncError(
            f"push must succeed within {MAX_ATTEMPTS} attempts, got: {failure}. "
            "See the log of the worker that is named."
        )

    def _attempt(self, version: int, record_digests: bool) -> str | None:
        """Return what failed, None where all went well on all ranks."""
        failure = self._connect()
        if any_rank_failed(failure is not None):
            return self._disconnect(failure)
        failure = self._send(version, record_digests)
        if any_rank_failed(failure is not None):
            return self._disconnect(failure)
        return None

    def _connect(self) -> str | None:
        if self._rank != 0:
            if self._sender is None:
                self._sender = self._new_sender()
            return None
        try:
            engines = [status.engine_id for status in self._pool.load(self._engine)]
            if self._sender is None or engines != self._connected_engines:
                self._sender = self._new_sender()
                self._connected_engines = engines
        except WorkerError as error:
            return str(error)
        return None

    def _send(self, version: int, record_digests: bool) -> str | None:
        assert self._sender is not None
        self._source.begin_pass(record_digests=record_digests)
        self._client.record_digests = record_digests
        try:
            self._sender.send_weights()
            if self._rank == 0:
                self._client.update_weight_version(version)
        except WorkerError as error:
            self._source.drain()
            return str(error)
        return None

    def _disconnect(self, failure: str | None) -> str:
        if self._sender is not None:
            self._sender.shutdown()
        self._sender = None
        self._connected_engines = None
        return failure or "another rank failed"

    def _new_sender(self) -> "TrainerWeightTransferEngine[TrainerInitInfo]":
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        return WeightTransferTrainerFactory.trainer_init(
            _trainer_init_info(self._engine, self._rank, len(self._pool)),
            client=self._client,
            source=self._source,
        )


class PoolClient:
    """vLLM's control plane of a weight transfer, spoken to a whole pool with time limits."""

    def __init__(self, pool: RolloutPool, tensor_parallel_size: int) -> None:
        self._pool = pool
        self._tensor_parallel_size = tensor_parallel_size
        self.record_digests = False

    def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        """Connect every engine, each with its own place among the ranks of the transfer."""
        requests = []
        for index in range(len(self._pool)):
            own = dict(init_info)
            if isinstance(offset := own.get("rank_offset"), int):
                own["rank_offset"] = offset + index * self._tensor_parallel_size
            requests.append(({"init_info": own},))
        self._pool.call_each("init_weight_transfer_engine", requests)

    def start_weight_update(self) -> None:
        """Open the push on every engine."""
        self._pool.call_all("start_weight_update", self.record_digests)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Hand one part of the weights to every engine."""
        self._pool.call_all("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the push on every engine; the version goes by a call of its own."""
        self._pool.call_all("finish_weight_update")

    def update_weight_version(self, version: int) -> None:
        """Let every engine serve what it received."""
        self._pool.call_all("update_weight_version", version)


def _trainer_init_info(engine: EngineConfig, rank: int, num_engines: int) -> "TrainerInitInfo":
    if engine.backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=rank, packed=True)
    if engine.backend == "nccl":
        import ray
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        return NCCLTrainerInitInfo(
            master_address=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            master_port=get_open_port(),
            world_size=1 + num_engines * engine.tensor_parallel_size,
            rank=rank,
        )
    from rpa_ray.weight_sync.object_store import ObjectStoreTrainerInitInfo

    return ObjectStoreTrainerInitInfo(rank=rank)
