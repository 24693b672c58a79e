"""A local Ray cluster, a rollout engine, and small random models that it can serve."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rpa_ray.actors.pools import RolloutPool, create_rollout_pool
from rpa_ray.actors.rollout import EngineConfig

MAX_MODEL_LEN = 96


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the embedded models are made, once, by whichever test needs them first.

    RPA_RAY_TEST_CACHE names a folder that outlives the tests, which saves minutes.
    """
    kept = os.environ.get("RPA_RAY_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def rollout_pool(ray_cluster: None) -> RolloutPool:
    # The first call waits for the import of vLLM, which a cold disk can make minutes.
    return create_rollout_pool(1, num_cpus=0.5, time_limit_s=600.0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_llama(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def engine_config(model_folder: Path) -> EngineConfig:
    return EngineConfig(model_path=str(model_folder), max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="session")
def model_a() -> LlamaForCausalLM:
    return random_llama(seed=0)


@pytest.fixture(scope="session")
def model_b() -> LlamaForCausalLM:
    return random_llama(seed=1)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return [[5 + i, 6, 7 * i + 8, *range(20 + i, 32 + 2 * i)] for i in range(8)]


def random_llama(*, seed: int) -> LlamaForCausalLM:
    """Return 0.9M random bf16 weights, large enough that logits are not flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()
