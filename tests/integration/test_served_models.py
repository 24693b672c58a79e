"""The rollout engine computes what transformers does, for every architecture that plan accepts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import save_turn_ending_model
from served import output_gap
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.actors.rollout import Sampling
from rpa_ray.data.collate import encode_prompt
from rpa_ray.data.ends import end_ids
from rpa_ray.data.template import Template
from rpa_ray.learner.modules import load_policy
from rpa_ray.plan.checks.served_models import ARCHITECTURES, CPU_HEAD_SIZES
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync

pytestmark = pytest.mark.timeout(1500)

PROMPTS = [[5, 9, 30, 41, 7, 8], [12, 13, 14, 50, 51, 52, 3, 55]]
IDS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
COUNTS = {"num_hidden_layers": 2, "num_attention_heads": 2}
KEYS = {"num_key_value_heads": 2}
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    **COUNTS,
    **KEYS,
}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128}
SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 2},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gptj": GPT | {"rotary_dim": 16},
    "falcon": {"hidden_size": 64, **COUNTS},
    "phi": LLAMA | {"intermediate_size": 256},
    "opt": LLAMA | {"ffn_dim": 128, "word_embed_proj_dim": 64},
}
"""By model type, of those whose sizes have other names than a Llama's."""
WIDTHS = {
    **dict.fromkeys(["ernie4_5", "gemma", "gemma2", "gemma3_text", "glm", "glm4"], 32),
    **dict.fromkeys(["cwm", "hunyuan_v1_dense", "qwen3", "seed_oss"], 32),
}
"""Size of a head by model type, where it is not the hidden size by the number of heads."""
QUICK = {"GPTNeoXForCausalLM", "Gemma3ForCausalLM"}


def config_of(architecture: str) -> Any:
    """Return a config of two small layers."""
    model_type = next(
        t for t, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture
    )
    if architecture == "GPT2LMHeadModel":
        model_type = "gpt2"  # others have its class too
    sizes = IDS | SIZES.get(model_type, LLAMA) | {"pad_token_id": 0}
    if model_type in WIDTHS:
        sizes |= {"head_dim": WIDTHS[model_type], "num_key_value_heads": 1}
    return AutoConfig.for_model(model_type, **sizes)


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a in QUICK else pytest.mark.slow) for a in ARCHITECTURES],
)
def test_the_engine_gives_the_log_probabilities_of_transformers(
    architecture: str, rollout_pool: RolloutPool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(architecture)).float().save_pretrained(tmp_path)
    module = load_policy(tmp_path, dtype=torch.float32)
    source = ShardedSource(module.served_parameters(), dtype=torch.float32)
    engine = EngineConfig(model_path=str(tmp_path), max_model_len=96, dtype="float32")
    WeightSync(pool=rollout_pool, source=source, engine=engine, rank=0).push(1)
    sampling = Sampling(max_new_tokens=24, seed=3, eos_token_id=2)
    gap = output_gap(
        logits_of=lambda ids: module.policy(ids).logits,
        prompts=PROMPTS,
        generated=rollout_pool.generate(PROMPTS, sampling, 1),
    )
    # rounding in float32 was at most 2e-7, a mixture's experts left as they were 0.008
    assert gap.mean_logprob_gap < 1e-5


def test_an_answer_ends_where_transformers_ends_it(
    rollout_pool: RolloutPool, tmp_path: Path
) -> None:
    module = load_policy(save_turn_ending_model(tmp_path), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt_ids = encode_prompt(tokenizer, Template.MODEL_CHAT, "what is a river")
    expected = module.policy.generate(
        torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=16
    )
    source = ShardedSource(module.served_parameters(), dtype=torch.float32)
    engine = EngineConfig(model_path=str(tmp_path), max_model_len=64, dtype="float32")
    WeightSync(pool=rollout_pool, source=source, engine=engine, rank=0).push(1)
    ends = end_ids(tokenizer, Template.MODEL_CHAT, module.generation_config)
    sampling = Sampling(max_new_tokens=16, seed=0, eos_token_id=ends, greedy=True)
    (answer,) = rollout_pool.generate([prompt_ids], sampling, 1)
    assert answer.finished
    assert answer.token_ids == expected[0, len(prompt_ids) :].tolist()
    assert tokenizer.convert_ids_to_tokens(answer.token_ids) == ["water", "<|end|>"]


def test_the_installed_engine_knows_every_architecture_and_size() -> None:
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert set(ARCHITECTURES) <= set(ModelRegistry.get_supported_archs())
    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()
