"""What holds for every test: no network, one thread, GPU tests only where there is a GPU.

And what tests of either kind share: one learner rank in this process, the embedded world.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch and transformers are imported; worker processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if "gpu" in item.keywords]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch.distributed as dist

    rendezvous = tmp_path_factory.mktemp("rank") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that holds the embedded world of seed 0, and no model."""
    from rpa_ray.world.datasets import build_world

    cache = tmp_path_factory.mktemp("world-cache")
    build_world(0, cache)
    return cache
