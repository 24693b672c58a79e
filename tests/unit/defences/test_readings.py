from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fakes import VOCAB_SIZE, tiny_llama, token_batch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, PreTrainedConfig

from rpa_ray.defences.readings import Readings

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]], num_prompt_tokens=2)
SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=VOCAB_SIZE),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=16, vocab_size=VOCAB_SIZE),
}


def test_the_lens_reads_every_state_and_the_last_one_after_its_norm() -> None:
    model = tiny_llama()
    readings = Readings(model)
    with readings.reading((BATCH.input_ids, BATCH.loss_mask)):
        outputs = model(
            BATCH.input_ids, attention_mask=BATCH.attention_mask, output_hidden_states=True
        )
        found = [float(loss.detach()) for loss in readings.lens_losses]
    expected = []
    for hidden in outputs.hidden_states:
        logits = model.lm_head(model.model.norm(hidden))[:, :-1]
        losses = F.cross_entropy(
            logits.flatten(0, 1), BATCH.input_ids[:, 1:].flatten(), reduction="none"
        )
        expected.append(float(losses[BATCH.loss_mask[:, 1:].flatten()].sum().detach()))
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-5)


def test_mlp_outputs_are_those_of_every_block_with_their_graph() -> None:
    model = tiny_llama()
    readings = Readings(model)
    with readings.reading(None):
        model(BATCH.input_ids, attention_mask=BATCH.attention_mask)
        outputs = list(readings.mlp_outputs)
        assert readings.lens_losses == []
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 32)] * 2
    outputs[0].sum().backward()
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.grad is not None
    assert float(weight.grad.norm()) > 0


def test_hidden_states_are_those_of_the_model_and_blocks_end_before_the_norm() -> None:
    model = tiny_llama()
    readings = Readings()
    readings.attach(model)
    with readings.reading((BATCH.input_ids, BATCH.loss_mask)):
        outputs = model(
            BATCH.input_ids, attention_mask=BATCH.attention_mask, output_hidden_states=True
        )
        found, blocks = readings.hidden_states, list(readings.block_outputs)
    assert len(found) == 3
    assert all(map(torch.equal, found, outputs.hidden_states))
    assert torch.equal(blocks[0], found[1])
    assert torch.equal(model.model.norm(blocks[1]), found[2])


def test_other_passes_are_not_read_and_nothing_is_kept() -> None:
    model = tiny_llama()
    readings = Readings(model)
    num_hooks = count_hooks(model)
    for _ in range(3):
        with readings.reading((BATCH.input_ids, BATCH.loss_mask)):
            model(BATCH.input_ids, attention_mask=BATCH.attention_mask)
        assert (readings.mlp_outputs, readings.lens_losses) == ([], [])
        model(BATCH.input_ids, attention_mask=BATCH.attention_mask)
        assert (readings.mlp_outputs, readings.lens_losses) == ([], [])
        assert (readings.hidden_states, readings.block_outputs) == ([], [])
    assert count_hooks(model) == num_hooks


def test_an_error_ends_the_reading() -> None:
    model = tiny_llama()
    readings = Readings(model)
    with pytest.raises(RuntimeError), readings.reading((BATCH.input_ids, BATCH.loss_mask)):
        model(BATCH.input_ids, attention_mask=BATCH.attention_mask)
        raise RuntimeError
    model(BATCH.input_ids, attention_mask=BATCH.attention_mask)
    assert (readings.mlp_outputs, readings.lens_losses) == ([], [])


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_are_read_too(name: str) -> None:
    model = AutoModelForCausalLM.from_config(OTHERS[name]()).eval()
    readings = Readings(model)
    with readings.reading((BATCH.input_ids, BATCH.loss_mask)):
        model(BATCH.input_ids, attention_mask=BATCH.attention_mask, use_cache=False)
        assert (len(readings.mlp_outputs), len(readings.lens_losses)) == (2, 3)


def test_a_model_without_blocks_is_refused() -> None:
    class Bare(nn.Linear):
        base_model = None

    with pytest.raises(ValueError, match=r"blocks that have an MLP called mlp or .* got Bare"):
        Readings(Bare(2, 2))


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
