from pathlib import Path

import pytest

from rpa_ray.world.datasets import build_world


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built world of seed 0, alone in its cache folder."""
    return build_world(0, tmp_path_factory.mktemp("cache"))
