"""What the rollout engine serves: architectures, by the name in ``config.json``, and shapes.

An architecture stands here once a model of it gave the same log-probabilities in the engine as in
transformers, which ``tests/integration/test_served_models.py`` repeats: vLLM knows more, but takes
the weights of some (mixtures of experts) only under other names, without a word, or computes a
little differently.
"""

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
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that the engine has kernels for on a CPU."""


def check_shapes(
    named: str | None, config: "PretrainedConfig", told: Mapping[str, Any], key: str
) -> None:
    """Refuse sizes of which the rollout engine builds no model, or another.

    Raises:
        ConfigError: with the sizes, as ``config.json`` tells them.
    """
    text = config.get_text_config()
    heads, width = text.num_attention_heads, text.hidden_size
    pairs = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None)
    own_inner = told.get("n_inner") or 4 * width
    broken = None
    if heads % pairs:
        broken = "num_attention_heads a multiple of num_key_value_heads", f"{heads} and {pairs}"
    elif "head_dim" not in told and width % heads and head_size(text) == width // heads:
        broken = "hidden_size a multiple of num_attention_heads", f"{width} and {heads}"
    # vLLM's Phi, model_executor/models/phi.py, has sizes that its config cannot change.
    elif named == "PhiForCausalLM" and pairs != heads:
        broken = "as many num_key_value_heads as num_attention_heads", f"{pairs} and {heads}"
    elif named == "PhiForCausalLM" and inner != own_inner:
        broken = f"an intermediate_size of four times its hidden_size, {own_inner}", str(inner)
    if broken is not None:
        rule = f"be of sizes that the rollout engine can build: {broken[0]}"
        raise ConfigError(key, rule, broken[1], "Take another model.")


def head_size(text: "PretrainedConfig") -> int | None:
    """Return the width of an attention head, None where the config has no heads."""
    heads = getattr(text, "num_attention_heads", None)
    return getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)
