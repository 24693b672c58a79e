"""How the ranks of one machine meet: in a file, where Ray Train's own way is a port.

Torch's store behind that port listens on every address, asks for nothing, and is told where each
rank answers.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_GRACE_S = 60.0


@dataclass(kw_only=True)
class FileTorchConfig(TorchConfig):
    """Ray Train's settings of torch for ranks that share a disk."""

    folder: str
    """A new folder, which nobody else may enter."""

    @property
    def backend_cls(self) -> type["FileTorchBackend"]:
        """Return what sets up the ranks."""
        return FileTorchBackend


class FileTorchBackend(_TorchBackend):
    """Ray Train's backend, but for the meeting of the ranks."""

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Have every rank join the process group."""
        assert isinstance(backend_config, FileTorchConfig)
        size = len(worker_group)
        joins: list[Any] = [
            worker_group.execute_single_async(rank, _join, backend_config, rank, size)
            for rank in range(size)
        ]
        # They give up by themselves after the same time, and say who was missing.
        ray.get(joins, timeout=backend_config.timeout_s + _GRACE_S)


def _join(config: FileTorchConfig, rank: int, size: int) -> None:
    dist.init_process_group(
        config.backend,
        init_method=(Path(config.folder) / "store").as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=config.timeout_s),
    )
