"""A cache with the embedded world, for tests that run commands."""

from pathlib import Path

import pytest


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
