"""A learner rank and a vLLM engine on one GPU: weights go over as memory handles."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from gpu_scene import push
from transfer_on_cpu import small_llama

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.pools import RolloutPool, create_rollout_pool
from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.sync import choose_backend
from rpa_ray.weight_sync.verify import verify_served

ENGINE_LIMIT_S = 600.0

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("rank_on_gpu"),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[RolloutPool]:
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield create_rollout_pool(1, num_cpus=1, num_gpus=0.5, time_limit_s=ENGINE_LIMIT_S)
    ray.shutdown()


def test_a_push_by_ipc_arrives_to_the_bit(
    pool: RolloutPool, place: torch.device, tmp_path: Path
) -> None:
    """Two pushes of different weights from this process to an engine on the same card.

    Shows that CUDA's memory handles open in the engine, and that it holds the digests of what was
    sent, of the second push too.
    """
    small_llama(seed=0).save_pretrained(tmp_path)
    config = EngineConfig(
        model_path=str(tmp_path),
        max_model_len=64,
        dtype="bfloat16",
        backend=choose_backend(cuda_available=True, colocated=True),
        gpu_memory_utilization=0.3,
    )
    assert config.backend == "ipc"
    for seed in (1, 2):
        model = small_llama(seed=seed).to(place, torch.bfloat16)
        sent = push(pool, model, config).digests
        assert sent == {
            name: tensor_digest(weight.detach().cpu()) for name, weight in model.named_parameters()
        }
        verify_served(pool=pool, expected=sent)
