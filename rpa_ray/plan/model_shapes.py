"""Sizes of models as memory is planned by: of a folder, an embedded model, or a known Hub id."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rpa_ray.plan.checks.model_files import stored_weights
from rpa_ray.recipes.cell_models import Model
from rpa_ray.recipes.embedded import ARCHITECTURE
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.world.tokenizer import VOCABULARY_SIZE


class ModelShape(NamedTuple):
    """The sizes of a transformer that decide its memory; widths are numbers of channels."""

    num_parameters: int
    """Tied embeddings counted once."""
    num_layers: int
    hidden_width: int
    mlp_width: int
    """Of the layer between the two, or three, matrices of an MLP."""
    num_heads: int
    num_kv_heads: int
    vocabulary_size: int
    has_gate: bool = True
    """Whether an MLP has three matrices (Llama, Qwen) or two (GPT-2)."""
    own_head_width: int | None = None
    """Channels of a head where they are not ``hidden_width / num_heads``."""

    @property
    def head_width(self) -> int:
        """Return the channels of an attention head."""
        return self.own_head_width or self.hidden_width // self.num_heads

    @property
    def kv_width(self) -> int:
        """Return the channels of all keys of a token; its values have as many."""
        return self.num_kv_heads * self.head_width

    def num_adapter_parameters(self, rank: int) -> int:
        """Return the parameters of low-rank adapters beside every linear layer but the head.

        A layer from n to m channels has ``rank * (n + m)`` (Hu et al. 2021, arXiv:2106.09685).
        """
        hidden, mlp = self.hidden_width, self.mlp_width
        attention = 2 * (hidden + self.num_heads * self.head_width) + 2 * (hidden + self.kv_width)
        return self.num_layers * rank * (attention + (3 if self.has_gate else 2) * (hidden + mlp))


_LLAMA_2_7B = ModelShape(6_738_415_616, 32, 4096, 11_008, 32, 32, 32_000)
_LLAMA_3_8B = ModelShape(8_030_261_248, 32, 4096, 14_336, 32, 8, 128_256)
_LLAMA_3_70B = ModelShape(70_553_706_496, 80, 8192, 28_672, 64, 8, 128_256)
_QWEN_2_5_7B = ModelShape(7_615_616_512, 28, 3584, 18_944, 28, 4, 152_064)
_GPT2 = ModelShape(124_439_808, 12, 768, 3072, 12, 12, 50_257, False)
_GPT2_MEDIUM = ModelShape(354_823_168, 24, 1024, 4096, 16, 16, 50_257, False)
_GPT2_LARGE = ModelShape(774_030_080, 36, 1280, 5120, 20, 20, 50_257, False)
_DEBERTA_V3_XSMALL = ModelShape(70_682_112, 12, 384, 1536, 6, 6, 128_100, False)

KNOWN_SHAPES: dict[str, ModelShape] = {
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-70B": _LLAMA_3_70B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA_3_70B,
    "chujiezheng/tulu-2-dpo-7b": _LLAMA_2_7B,
    "Qwen/Qwen2.5-7B": _QWEN_2_5_7B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_2_5_7B,
    "openai-community/gpt2": _GPT2,
    "openai-community/gpt2-medium": _GPT2_MEDIUM,
    "openai-community/gpt2-large": _GPT2_LARGE,
    "Ray2333/gpt2-large-helpful-reward_model": _GPT2_LARGE,
    "microsoft/deberta-v3-xsmall": _DEBERTA_V3_XSMALL,
    "domenicrosati/deberta-v3-xsmall-beavertails-harmful-qa-classifier": _DEBERTA_V3_XSMALL,
}
"""Of models of the Hub, so that a plan needs none of them; a classifier has the shape of its trunk,
some thousand parameters short."""


def shape_of(model: Model) -> ModelShape | None:
    """Return the sizes of a model, of one that is made those of the model that it starts from.

    None where they are not known: of a Hub id that is not in :data:`KNOWN_SHAPES`, and of a folder
    whose config names them otherwise than most do.
    """
    if isinstance(model, ModelRecipe):
        return _embedded_shape() if model.start is None else shape_of(model.start)
    folder = Path(model)
    if (folder / "config.json").is_file():
        return _shape_in(folder)
    return known_shape(model)


def known_shape(hub_id: str) -> ModelShape | None:
    """Return the sizes of a model of the Hub by its id, with a revision or without one."""
    return KNOWN_SHAPES.get(hub_id.partition("@")[0])


def _embedded_shape() -> ModelShape:
    sizes = ARCHITECTURE
    hidden, mlp, layers = (
        sizes[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads = sizes["num_attention_heads"]
    num_parameters = 2 * VOCABULARY_SIZE * hidden + layers * (4 * hidden**2 + 3 * hidden * mlp)
    return ModelShape(num_parameters, layers, hidden, mlp, heads, heads, VOCABULARY_SIZE)


@lru_cache(maxsize=32)
def _shape_in(folder: Path) -> ModelShape | None:
    """Return the sizes that a config.json tells, with the parameters that the weight files hold."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**config, **config.get("text_config", {})}
    hidden = _first(config, "hidden_size", "n_embd")
    layers = _first(config, "num_hidden_layers", "n_layer")
    heads = _first(config, "num_attention_heads", "n_head")
    vocabulary = _first(config, "vocab_size")
    if hidden is None or layers is None or heads is None or vocabulary is None:
        return None
    weights = stored_weights(folder, "model.path")
    return ModelShape(
        num_parameters=sum(math.prod(weight.shape) for weight in weights.values()),
        num_layers=layers,
        hidden_width=hidden,
        mlp_width=_first(config, "intermediate_size", "n_inner") or 4 * hidden,
        num_heads=heads,
        num_kv_heads=_first(config, "num_key_value_heads") or heads,
        vocabulary_size=vocabulary,
        has_gate=any(".gate_" in name for name in weights),  # gate_proj, gate_up_proj
        own_head_width=_first(config, "head_dim"),
    )


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)
