"""One learner rank in this process, for tests that run the real DeepSpeed engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest


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


@pytest.fixture
def own_cache(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with that world in which a command may place models."""
    cache = tmp_path_factory.mktemp("own-cache")
    (world,) = world_cache.glob("world-*")
    (cache / world.name).symlink_to(world)
    # How fast models are here is timed once.
    (world_cache / "speed").mkdir(exist_ok=True)
    (cache / "speed").symlink_to(world_cache / "speed")
    return cache
