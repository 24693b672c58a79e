"""One learner rank in this process, for tests that run the real DeepSpeed engine."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch.distributed as dist

    rendezvous = tmp_path_factory.mktemp("rank") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
