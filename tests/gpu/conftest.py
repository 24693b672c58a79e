"""One learner rank on the first GPU; tests here are skipped where there is none."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def place() -> torch.device:
    """Return the GPU, which multiplies fp32 as the CPU does."""
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def rank_on_gpu(place: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch.distributed as dist

    torch.cuda.set_device(place)
    meeting = tmp_path_factory.mktemp("rank") / "meeting"
    backends = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backends, init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
