"""What holds for every parity test: the libraries see one process, and leave no trace behind."""

import os
from collections.abc import Iterator

import pytest

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set by DeepSpeed in earlier tests; accelerate would wait for the other ranks."""


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Restore variables that TRL sets on import, such as vLLM's log level: workers inherit them."""
    before = dict(os.environ)
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
