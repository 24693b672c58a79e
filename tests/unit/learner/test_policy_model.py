from pathlib import Path

import pytest
import torch
from fakes import VOCAB_SIZE, tiny_llama, tiny_policy
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig

from rpa_ray.config import LoraSettings
from rpa_ray.learner.modules import (
    PolicyModel,
    ScoreModel,
    add_lora,
    init_policy,
    load_policy,
    load_score_model,
    without_dropout,
)

IDS = torch.tensor([[1, 5, 6, 7]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def test_a_value_stands_at_the_token_it_was_known_before() -> None:
    # The state after reading tokens 0..t-1 is worth values[:, t]; before the first it is worth 0.
    module = tiny_policy()
    _, values, _ = module(IDS, MASK)
    assert values is not None
    changed = IDS.clone()
    changed[0, 2] = 9
    _, other, _ = module(changed, MASK)
    assert other is not None
    assert values[0, 0] == 0.0
    assert torch.equal(values[0, :3], other[0, :3])
    assert values[0, 3] != other[0, 3]


def test_a_cost_head_has_values_of_its_own() -> None:
    module = tiny_policy()
    _, alone, none = module(IDS, MASK)
    assert none is None
    module.add_cost_head(seed=3)
    _, values, costs = module(IDS, MASK)
    assert torch.equal(values, alone) and costs[0, 0] == 0.0
    assert not torch.equal(values, costs)


def test_a_policy_without_a_critic_has_no_values() -> None:
    _, values, _ = tiny_policy(value_head=False)(IDS, MASK)
    assert values is None


def test_a_value_head_is_the_same_whatever_was_drawn_before() -> None:
    heads = []
    for draws in (0, 5):
        model = tiny_llama()
        torch.randn(draws)
        head = PolicyModel(model, value_head_seed=4).value_head
        assert head is not None
        heads.append(head.weight)
    assert torch.equal(heads[0], heads[1])
    assert heads[0].dtype == torch.float32


def test_the_value_head_is_not_served() -> None:
    names = [name for name, _ in tiny_policy().served_parameters()]
    assert "model.embed_tokens.weight" in names
    assert not any("value_head" in name for name in names)


def test_every_dropout_is_off() -> None:
    model = tiny_llama()
    model.add_module("extra", nn.Dropout(0.3))
    model.model.layers[0].self_attn.attention_dropout = 0.2
    without_dropout(model)
    assert model.extra.p == 0.0
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


def test_a_fresh_policy_depends_on_its_seed_alone() -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    first, again, other = (
        init_policy(config, seed=seed, dtype=torch.bfloat16) for seed in (1, 1, 2)
    )
    weights = [
        dict(m.served_parameters())["model.embed_tokens.weight"] for m in (first, again, other)
    ]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_loaded_policy_is_the_saved_one(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, dtype=torch.float32)
    logits, *_ = loaded(IDS, MASK)
    torch.testing.assert_close(logits, model(IDS).logits)


def test_a_score_is_read_at_the_last_token_that_is_not_padding(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    module = load_score_model(tmp_path, num_labels=2, pad_token_id=0, seed=0, dtype=torch.float32)
    padded = torch.tensor([[1, 5, 6, 7, 0, 0]])
    mask = padded != 0
    torch.testing.assert_close(module(padded, mask), module(IDS, MASK))


def test_weights_are_served_by_the_names_that_checkpoints_have(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = GPTNeoXConfig(vocab_size=VOCAB_SIZE, num_attention_heads=2, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "embed_out.weight" in stored
    for module in (
        load_policy(tmp_path, dtype=torch.float32),
        PolicyModel(GPTNeoXForCausalLM(config), value_head_seed=None),
    ):
        served = dict(module.served_parameters())
        assert served.keys() == stored.keys()
        assert served["embed_out.weight"] is module.policy.lm_head.weight
    add_lora(module, LoraSettings(rank=2, target_modules=["dense", "lm_head"]), seed=0)
    assert module.adapters().keys() == {
        "embed_out.weight",
        "gpt_neox.layers.0.attention.dense.weight",
    }
    assert dict(module.served_parameters()).keys() == stored.keys()


def test_a_model_that_lacks_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    tiny_llama(tied=False).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)

    def without(name: str) -> None:
        save_file({n: w for n, w in weights.items() if n != name}, file, {"format": "pt"})

    def start() -> ScoreModel:
        return load_score_model(tmp_path, num_labels=1, pad_token_id=0, seed=0, dtype=torch.float32)

    without("lm_head.weight")
    with pytest.raises(ValueError, match=r"must hold every weight .* got none for lm_head\.weight"):
        load_policy(tmp_path, dtype=torch.float32)
    start()  # has no use for it, and a head of its own
    without("model.norm.weight")
    with pytest.raises(ValueError, match=r"got none for model\.norm\.weight \(1 in all\)"):
        start()
