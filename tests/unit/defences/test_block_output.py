import pytest
import torch
from fakes import VOCAB_SIZE, forward_of, tiny_llama, tiny_policy, token_batch
from transformers import AutoModelForCausalLM, GPT2Config

from rpa_ray.defences.block_output import BlockOutput
from rpa_ray.learner.modules import PolicyModel

BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
IDS, MASK = BATCH.input_ids, BATCH.attention_mask


@pytest.mark.parametrize(("layer", "number"), [(0, 0), (1, 1), (-1, 1), (-2, 0), (None, 1)])
def test_a_block_is_counted_from_either_end_and_none_is_the_middle(
    layer: int | None, number: int
) -> None:
    module = tiny_policy(value_head=False)
    block = BlockOutput(layer)
    block.attach(module.policy)
    found = block.of(forward_of(module), IDS, MASK)
    states: list[torch.Tensor] = []
    module.policy.model.layers[number].register_forward_hook(
        lambda layer, args, output: states.append(output)
    )
    module(IDS, MASK)
    assert found.shape == (2, 5, 32)
    assert torch.equal(found, states[0])


def test_states_have_their_graph_and_those_of_other_passes_are_not_kept() -> None:
    module = tiny_policy(value_head=False)
    block = BlockOutput(0)
    block.attach(module.policy)
    module(IDS, MASK)
    assert block._output is None
    block.of(forward_of(module), IDS, MASK).sum().backward()
    assert block._output is None
    layers = module.policy.model.layers
    assert float(layers[0].mlp.up_proj.weight.grad.norm()) > 0
    assert layers[1].mlp.up_proj.weight.grad is None


def test_a_broken_pass_ends_the_reading() -> None:
    module = tiny_policy(value_head=False)
    block = BlockOutput(0)
    block.attach(module.policy)

    def broken(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        module(input_ids, attention_mask)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        block.of(broken, IDS, MASK)
    module(IDS, MASK)
    assert block._output is None


def test_another_decoder_is_read_too() -> None:
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=VOCAB_SIZE)
    module = PolicyModel(AutoModelForCausalLM.from_config(config).eval(), value_head_seed=None)
    block = BlockOutput(None)
    block.attach(module.policy)
    found = block.of(forward_of(module), IDS, MASK)
    expected = module.policy(IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_block_that_is_not_there_is_refused(layer: int) -> None:
    rule = rf"^defence\.layer must be between -2 and 1 for the 2 blocks .*, got {layer}\. Choose"
    with pytest.raises(ValueError, match=rule):
        BlockOutput(layer).attach(tiny_llama())


def test_a_model_without_known_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="for the 0 blocks found in Linear, got 0"):
        BlockOutput(None).attach(torch.nn.Linear(1, 1))
