"""What the rollout engine serves: architectures, by the name in ``config.json``, and shapes.

An architecture stands here once a model of it gave the same log-probabilities in the engine as in
transformers, which ``tests/integration/test_served_models.py`` repeats: vLLM knows more, but takes
the weights of some (mixtures of experts) only under other names, without a word, or computes a
little differently.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rpa_ray.config import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ARCHITECTURES = (
    "ArceeForCausalLM",
    "BloomForCausalLM",
    "CohereForCausalLM",
    "CwmForCausalLM",
    "Ernie4_5ForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GlmForCausalLM",
    "GraniteForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "HyperCLOVAXForCausalLM",
    "Jais2ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "NemotronForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
)
_WITH_SILU = (
    "CohereForCausalLM",
    "CwmForCausalLM",
    "Ernie4_5ForCausalLM",
    "Glm4ForCausalLM",
    "GlmForCausalLM",
    "GraniteForCausalLM",
    "HyperCLOVAXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SeedOssForCausalLM",
    "StableLmForCausalLM",
)
BUILT_WITH: Mapping[str, Mapping[str, Any]] = {
    "GPT2LMHeadModel": {
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "GPTJForCausalLM": {"tie_word_embeddings": False},
    "Gemma2ForCausalLM": {"hidden_activation": "gelu_pytorch_tanh"},
    "PhiForCausalLM": {"tie_word_embeddings": False},
    **{name: {"hidden_act": "silu"} for name in _WITH_SILU},
}
"""Settings of a config with which alone vLLM builds the architecture, or builds the same model: its
model_executor/models/ asserts them, or (Cohere, StableLm) does not read them."""
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that the engine has kernels for on a CPU."""


def check_served(named: str | None, config: "PretrainedConfig", device: str, key: str) -> None:
    """Refuse what the rollout engine cannot serve.

    Raises:
        ConfigError: with what it can.
    """
    if named not in ARCHITECTURES:
        raise ConfigError(
            key,
            "be of an architecture that the rollout engine serves, by its config.json",
            named,
            f"Take a model of one of these: {', '.join(ARCHITECTURES)}.",
        )
    size = _head_size(config.get_text_config())
    if device == "cpu" and size is not None and size not in CPU_HEAD_SIZES:
        raise ConfigError(
            key,
            "have attention heads of a size that the engine has kernels for on a CPU "
            f"({', '.join(map(str, CPU_HEAD_SIZES))})",
            size,
            "Take another model, or serve it on a GPU (cluster.gpus_per_rollout_worker).",
        )


def check_shapes(
    named: str | None, config: "PretrainedConfig", told: Mapping[str, Any], key: str
) -> None:
    """Refuse sizes and settings of which the rollout engine builds no model, or another.

    Raises:
        ConfigError: with what ``config.json`` tells of them.
    """
    text = config.get_text_config()
    heads, width = text.num_attention_heads, text.hidden_size
    pairs = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None)
    own_inner = told.get("n_inner") or 4 * width
    broken = None
    if heads % pairs:
        broken = "num_attention_heads a multiple of num_key_value_heads", f"{heads} and {pairs}"
    elif "head_dim" not in told and width % heads and _head_size(text) == width // heads:
        broken = "hidden_size a multiple of num_attention_heads", f"{width} and {heads}"
    # vLLM's Phi, model_executor/models/phi.py, has sizes that its config cannot change.
    elif named == "PhiForCausalLM" and pairs != heads:
        broken = "as many num_key_value_heads as num_attention_heads", f"{pairs} and {heads}"
    elif named == "PhiForCausalLM" and inner != own_inner:
        broken = f"an intermediate_size of four times its hidden_size, {own_inner}", str(inner)
    for name, value in BUILT_WITH.get(named or "", {}).items():
        if getattr(text, name, value) != value:
            broken = f"{name} {json.dumps(value)}", json.dumps(getattr(text, name))
    if broken is not None:
        rule = f"be what the rollout engine can build: {broken[0]}"
        raise ConfigError(key, rule, broken[1], "Take another model.")


def _head_size(text: "PretrainedConfig") -> int | None:
    heads = getattr(text, "num_attention_heads", None)
    return getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)
