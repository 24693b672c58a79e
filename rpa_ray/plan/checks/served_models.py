"""What the rollout engine serves: architectures, by the name in ``config.json``, and shapes.

An architecture stands here once a model of it gave the same log-probabilities in the engine as in
transformers, which ``tests/integration/test_served_models.py`` repeats: vLLM knows more, but takes
the weights of some (mixtures of experts) only under other names, without a word, or computes a
little differently.
"""

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
