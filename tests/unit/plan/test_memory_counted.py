"""The plan of memory beside the bytes of the tensors that a training holds, on one rank."""

import runpy
from pathlib import Path

import pytest
from transformers import LlamaConfig

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "memory_plan.py"))
STATES, ACTIVATIONS = 2, 64
"""Tokens of a row with which weights, or what the backward pass keeps, take most."""


def small_llama() -> LlamaConfig:
    """Return one whose widths all differ."""
    return LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [
        ("zero 1", STATES),
        ("zero 1", ACTIVATIONS),
        ("zero 1, checkpointed", ACTIVATIONS),
        ("lora, a copy held", ACTIVATIONS),
        ("lora", ACTIVATIONS),
        ("lisa", STATES),
        ("refusal_loss", ACTIVATIONS),
    ],
)
def test_a_rank_holds_what_is_planned(process_group: None, name: str, num_tokens: int) -> None:
    case = SCRIPT["CASES"][name]
    found = SCRIPT["counted"](case, small_llama(), num_rows=8, num_tokens=num_tokens)
    planned = sum(found["planned"].values()) * 1024
    assert planned == pytest.approx(found["peak"], rel=0.15)


def test_checkpointed_layers_hold_less_at_the_peak_and_as_much_at_rest(
    process_group: None,
) -> None:
    whole, again = (
        SCRIPT["counted"](SCRIPT["CASES"][name], small_llama(), num_rows=8, num_tokens=ACTIVATIONS)
        for name in ("zero 1", "zero 1, checkpointed")
    )
    assert again["rest"] == whole["rest"]
    assert again["peak"] < 0.65 * whole["peak"]


def test_storages_count_once_from_when_they_are_made_until_they_are_freed() -> None:
    import torch

    with SCRIPT["LiveBytes"]() as live:
        kept = torch.zeros(100)
        view = kept[:50].add_(1)
        assert live.now == 400
        other = torch.ones(25)
        del other
        assert (live.now, live.peak) == (400, 500)
        del kept
        assert live.now == 400
        del view
    assert (live.now, live.peak) == (0, 500)
