"""The table of known sizes against what transformers builds from a config of those widths."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rpa_ray.plan.model_shapes import KNOWN_SHAPES, ModelShape, shape_of


def architecture(hub_id: str, shape: ModelShape) -> Any:
    """Return the config of a model with these widths; what else is in it has no parameters."""
    if "gpt2" in hub_id:
        return AutoConfig.for_model(
            "gpt2",
            n_embd=shape.hidden_width,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_inner=shape.mlp_width,
            vocab_size=shape.vocabulary_size,
        )
    sizes = {
        "hidden_size": shape.hidden_width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "vocab_size": shape.vocabulary_size,
    }
    if "deberta" in hub_id:
        return AutoConfig.for_model(
            "deberta-v2",
            **sizes,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        )
    return AutoConfig.for_model(
        "qwen2" if "Qwen" in hub_id else "llama",
        **sizes,
        num_key_value_heads=shape.num_kv_heads,
        tie_word_embeddings=False,
    )


ONE_OF_EACH_SHAPE = list({shape: hub_id for hub_id, shape in KNOWN_SHAPES.items()}.values())


@pytest.mark.parametrize("hub_id", ONE_OF_EACH_SHAPE)
def test_known_models_have_the_parameters_that_transformers_builds(hub_id: str) -> None:
    shape = KNOWN_SHAPES[hub_id]
    kind: Any = AutoModel if "deberta" in hub_id else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(architecture(hub_id, shape))
    assert model.num_parameters() == shape.num_parameters


def test_adapters_are_counted_as_peft_makes_them() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    hub_id = "meta-llama/Meta-Llama-3-8B"
    shape = KNOWN_SHAPES[hub_id]._replace(num_layers=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture(hub_id, shape))
        whole = model.num_parameters()
        config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        inject_adapter_in_model(config, model)
    assert model.num_parameters() - whole == shape.num_adapter_parameters(16)


def test_a_revision_does_not_change_the_sizes_and_an_unknown_model_has_none() -> None:
    shape = KNOWN_SHAPES["openai-community/gpt2"]
    assert shape_of("openai-community/gpt2@main") == shape
    assert shape_of("openai-community/gpt3") is None


@pytest.mark.parametrize(
    ("gate", "has_gate"),
    [("mlp.gate_proj", True), ("mlp.gate_up_proj", True), ("mlp.dense_h_to_4h", False)],
)
def test_the_sizes_of_a_folder_are_those_of_its_config_and_its_weights(
    tmp_path: Path, gate: str, has_gate: bool
) -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 1000,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {"a": torch.zeros(7, 11), f"layers.0.{gate}.weight": torch.zeros(5)}
    save_file(weights, tmp_path / "model.safetensors")
    shape = shape_of(str(tmp_path))
    assert shape is not None
    assert shape[:7] == (82, 3, 64, 96, 4, 2, 1000)
    assert (shape.kv_width, shape.has_gate) == (64, has_gate)
