"""Both ends of a weight transfer by NCCL and IPC without a GPU: gloo and shared memory under them.

Nothing but what touches a GPU is replaced, in the processes of engines and ranks that are made
here: the communicator, CUDA's streams, and the export and import of a GPU's memory.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import uuid
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from transformers import LlamaConfig, LlamaForCausalLM

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.actors.rollout import EngineStatus, RolloutWorker
from rpa_ray.actors.worker_pool import Member
from rpa_ray.config import LoraSettings
from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, add_lora
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import PushResult, WeightSync

NUM_CHUNKS = 4
"""Layer groups of the model below: embedding, two layers, last norm."""
COLLECTIVE_LIMIT_S = 300.0
ANSWER_LIMIT_S = 600.0
DIED = "died"
NAMESPACE = "pushes"
ENGINES = ("rollout worker 0", "rollout worker 1")
PRELOADED = ["deepspeed", "ray", "rpa_ray.weight_sync.ipc", "rpa_ray.weight_sync.nccl"]
SHARED = "rpa-ray-test"
"""Name of what is shared as a GPU's memory is."""


def small_llama(*, seed: int) -> LlamaForCausalLM:
    """Return 2 layers with heads of a size that vLLM serves on a CPU."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


class Mortal:
    """Ends this process at a chunk, where it is told to; it begins anew with every process."""

    def __init__(self) -> None:
        self.num_chunks = 0
        self.last_chunk: int | None = None

    def is_told(self, last_chunk: int | None) -> None:
        self.num_chunks, self.last_chunk = 0, last_chunk

    def meets_chunk(self) -> None:
        if self.num_chunks == self.last_chunk:
            os.kill(os.getpid(), signal.SIGKILL)
        self.num_chunks += 1


ENGINE = Mortal()
RANK = Mortal()


class GlooCommunicator:
    """Stands in for vLLM's NCCL communicator.

    As in NCCL, a broadcast whose other side died waits until it is aborted, and what is not aborted
    stays where it is.
    """

    num_open = 0

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        self._rank = group.rank
        self._store = group.store
        self._aborted = threading.Event()
        GlooCommunicator.num_open += 1
        self._gloo = dist.ProcessGroupGloo(
            dist.PrefixStore("gloo", group.store),
            group.rank,
            group.world_size,
            timedelta(seconds=COLLECTIVE_LIMIT_S),
        )

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        if self._rank != src:
            ENGINE.meets_chunk()
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        try:
            self._gloo.broadcast([tensor], options).wait()
        except RuntimeError:
            if self._rank == src:
                self._aborted.wait()
            raise

    def destroy(self) -> None:
        if not self._aborted.is_set():
            GlooCommunicator.num_open -= 1
        self._aborted.set()
        self._gloo.abort()


class NoStream:
    """Stands in for CUDA's streams."""

    def synchronize(self) -> None:
        pass


def export_memory(tensor: Tensor) -> tuple[None, tuple[Any, ...]]:
    """Stand in for ``reduce_tensor``: a copy in shared memory that lives as long as the tensor."""
    descriptor = os.memfd_create(SHARED)
    weakref.finalize(tensor, os.close, descriptor)
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    import_memory(path, tensor.nbytes).copy_(tensor)
    # As in CUDA, no two exports are the same, though they may lie at the same place.
    return None, (path, tensor.nbytes, uuid.uuid4().hex, *[None] * 4)


def import_memory(path: str, num_bytes: int, *unused: object) -> Tensor:
    """Stand in for ``rebuild_cuda_tensor``."""
    return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


def import_memory_or_die(*handle: Any) -> Tensor:
    ENGINE.meets_chunk()
    return import_memory(*handle)


def on_cpu(gpu: str) -> None:
    """Replace in this process what touches a GPU; ``gpu`` is the one that it pretends to be on."""
    from torch.multiprocessing import reductions
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    from rpa_ray.weight_sync import ipc

    pynccl.PyNcclCommunicator = GlooCommunicator
    packed_tensor._get_streams = lambda device, num_buffers: [NoStream()] * num_buffers
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.current_stream = lambda *device: NoStream()
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=gpu)
    torch.cuda.ipc_collect = lambda: None
    ipc.reduce_tensor = export_memory
    reductions.rebuild_cuda_tensor = import_memory_or_die


class CpuTransferWorker(RolloutWorker):
    """A rollout worker whose engine receives by NCCL or IPC on a CPU."""

    def load(self, config: EngineConfig) -> EngineStatus:
        on_cpu(os.environ["RPA_RAY_TEST_GPU"])
        return super().load(config)

    def update_weights(self, request: Any) -> None:
        if "buffer" in request["update_info"]:  # of the object store, where nothing is replaced
            ENGINE.meets_chunk()
        super().update_weights(request)

    def dies_at(self, chunk: int) -> None:
        """End in the next push at this chunk of it, the first being 0."""
        ENGINE.is_told(chunk)

    def held(self) -> dict[str, int]:
        return held_by_this_process()


class CpuRank:
    """A learner rank on a CPU that pushes by NCCL or IPC."""

    def __init__(self, rank: int, num_ranks: int, pool: RolloutPool) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.pool = pool

    def has_policy(self, *, zero_stage: int, lora: bool = False, seed: int = 0) -> None:
        """Have a policy under DeepSpeed."""
        module = PolicyModel(small_llama(seed=seed), value_head_seed=None)
        if lora:
            add_lora(module, LoraSettings(rank=4, alpha=8), seed=1)
            generator = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for adapter in module.adapters().values():
                    adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator))
        optimizer = OptimizerSettings(learning_rate=1e-2, num_steps=10)
        self.engine = Engine(
            module,
            EngineSettings(
                optimizer=optimizer,
                micro_batch_size=1,
                num_ranks=self.num_ranks,
                zero_stage=zero_stage,
                bf16=False,
            ),
        )

    def serves(self, config: EngineConfig, num_engines: int = 2) -> None:
        """Serve the policy in the first engines from the next push on."""
        source = ShardedSource(
            self.engine.module.served_parameters(),
            dtype=torch.float32,
            gather=self._gather,
            adapters=self.engine.module.adapters(),
        )
        pool = RolloutPool(self.pool._members[:num_engines], time_limit_s=self.pool._time_limit_s)
        self.sync = WeightSync(pool=pool, source=source, engine=config, rank=self.rank)

    def push(
        self, version: int, *, victim: int | None = None, dies_at: int | None = None
    ) -> PushResult:
        """Push; the rank that is the victim ends at a chunk of it, the first being 0."""
        RANK.is_told(dies_at if self.rank == victim else None)
        return self.sync.push(version, record_digests=True)

    def digests(self) -> dict[str, str]:
        """Return those of the policy's own weights."""
        return {name: tensor_digest(weight) for name, weight in self.engine.weights().items()}

    def held(self) -> dict[str, int]:
        return held_by_this_process()

    def _gather(self, parameters: Sequence[Parameter]) -> AbstractContextManager[None]:
        RANK.meets_chunk()
        return self.engine.gather(parameters)


def _be_rank(
    rank: int, num_ranks: int, folder: str, cluster: str, time_limit_s: float, asked: Connection
) -> None:
    """Answer calls of a rank's methods with their result, or what they raised in words."""
    gc.freeze()  # or every collection would copy what was imported before the fork
    on_cpu(f"GPU-{rank}")
    torch.set_num_threads(1)
    ray.init(address=cluster, log_to_driver=False)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=COLLECTIVE_LIMIT_S),
    )
    members = [
        Member(name=name, handle=ray.get_actor(name, namespace=NAMESPACE)) for name in ENGINES
    ]
    served = CpuRank(rank, num_ranks, RolloutPool(members, time_limit_s=time_limit_s))
    while True:
        method, args = asked.recv()
        try:
            asked.send((getattr(served, method)(**args), None))
        except Exception as error:
            asked.send((None, f"{type(error).__name__}: {error}"))


class RankProcesses:
    """The ranks of one learner, each in a process of its own, which is forked in no time."""

    def __init__(self, num_ranks: int, folder: Path, *, time_limit_s: float) -> None:
        (own := folder / uuid.uuid4().hex).mkdir()
        cluster = ray.get_runtime_context().gcs_address
        processes = multiprocessing.get_context("forkserver")
        multiprocessing.set_forkserver_preload(PRELOADED)
        self._connections: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for rank in range(num_ranks):
            ours, theirs = multiprocessing.Pipe()
            args = (rank, num_ranks, str(own), cluster, time_limit_s, theirs)
            process = processes.Process(target=_be_rank, args=args, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def tell(self, method: str, **args: object) -> list[tuple[Any, str | None]]:
        """Return of every rank what a method gave, and what it raised; ``(None, DIED)`` if dead."""
        for connection in self._connections:
            with contextlib.suppress(BrokenPipeError):
                connection.send((method, args))
        return [self._answer(connection) for connection in self._connections]

    def ask(self, method: str, **args: object) -> list[Any]:
        """Return what a method gives on every rank."""
        answers = self.tell(method, **args)
        assert all(failure is None for _, failure in answers), answers
        return [answer for answer, _ in answers]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _answer(self, connection: Connection) -> tuple[Any, str | None]:
        assert connection.poll(ANSWER_LIMIT_S), "a rank gave no answer"
        try:
            answer: tuple[Any, str | None] = connection.recv()
        except (EOFError, ConnectionResetError):
            return None, DIED
        return answer


def held_by_this_process() -> dict[str, int]:
    """Return how many of what a process can leak it holds now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    maps = Path("/proc/self/maps").read_text()
    return {
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "communicators": GlooCommunicator.num_open,
        "threads": len(os.listdir("/proc/self/task")),
        "shared buffers": maps.count(SHARED),
        "private MiB": int(status["RssAnon"].split()[0]) // 1024,  # of KiB
    }
