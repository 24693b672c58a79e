from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from rpa_ray.actors import engine
from rpa_ray.actors.engine import EngineConfig, _cpu_kv_cache_bytes
from rpa_ray.actors.errors import StaleWeightsError
from rpa_ray.actors.rollout import RolloutWorker, Sampling, request_seed


def test_request_seeds_depend_on_seed_and_place_and_fit_in_63_bits() -> None:
    seeds = {request_seed(seed, index) for seed in range(30) for index in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    # 1/23 and 12/3 must not be the same stream
    assert request_seed(1, 23) != request_seed(12, 3)
    assert request_seed(3, 4) == request_seed(3, 4)


def test_a_worker_without_weights_serves_nothing() -> None:
    sampling = Sampling(max_new_tokens=1, seed=0, eos_token_id=2)
    with pytest.raises(StaleWeightsError, match="got 0 while None is"):
        RolloutWorker().generate([[5]], sampling, version=0)


def test_a_worker_without_an_engine_takes_no_weights() -> None:
    with pytest.raises(StaleWeightsError, match="must be loaded before it takes weights"):
        RolloutWorker().start_weight_update()


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    config = EngineConfig(model_path=str(tmp_path), max_model_len=8, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"model_path must be a folder with a config\.json"):
        RolloutWorker().load(config)


def test_an_engine_of_the_hub_is_built_from_the_files_here_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    built: list[str] = []

    def snapshot_download(repo: str, *, allow_patterns: list[str], **_: object) -> str:
        assert not [pattern for pattern in allow_patterns if "safetensors" in pattern]
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(engine, "_llm", lambda config: built.append(config.model_path))
    worker = RolloutWorker()
    monkeypatch.setattr(worker, "health", lambda: None)
    worker.load(EngineConfig(model_path="owner/name@0123", max_model_len=8, dtype="float32"))
    assert built == [str(tmp_path)]


@pytest.mark.parametrize(
    ("sizes", "num_bytes"),
    [
        # 2 * 3 layers * 2 heads * 8 values * 256 answers * 128 tokens * 2 bytes
        ({"num_key_value_heads": 2}, 2 * 3 * 2 * 8 * 256 * 128 * 2),
        ({"num_key_value_heads": 4, "head_dim": 16}, 2 * 3 * 4 * 16 * 256 * 128 * 2),
        ({"num_key_value_heads": 4, "head_dim": 1024}, 2**30),
    ],
)
def test_a_cpus_cache_holds_all_answers_up_to_a_limit(
    sizes: dict[str, int], num_bytes: int, tmp_path: Path
) -> None:
    model = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=3, **sizes)
    model.save_pretrained(tmp_path)
    # 100 tokens take a block of 128.
    config = EngineConfig(model_path=str(tmp_path), max_model_len=100, dtype="bfloat16")
    assert _cpu_kv_cache_bytes(config) == num_bytes


def test_an_engine_that_cannot_be_built_is_no_reason_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    config = EngineConfig(model_path=str(tmp_path), max_model_len=8, dtype="float32")

    def fails_with(error: Exception) -> None:
        def build(config: EngineConfig) -> None:
            raise error

        monkeypatch.setattr(engine, "_llm", build)
        RolloutWorker().load(config)

    for error in (RuntimeError("no kernel for 16"), TypeError("no kernel for 16")):
        with pytest.raises(ValueError, match=r"must be one that can be built .*no kernel for 16\."):
            fails_with(error)
    # what may be gone at the next try
    with pytest.raises(torch.OutOfMemoryError):
        fails_with(torch.OutOfMemoryError("of 80 GiB 0 are free"))
