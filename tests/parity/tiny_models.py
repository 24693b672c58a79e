"""A tokenizer of 24 words, and models that have moved away from one another, for all libraries."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from fakes import VOCAB_SIZE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

ModuleT = TypeVar("ModuleT", bound=nn.Module)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""What fp32 leaves of an equality: models of other libraries are padded on the other side."""


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that reads ``w5 w6`` as the ids 5 and 6."""
    ids = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="w3"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def moved(module: ModuleT, *, distance: float, seed: int = 0) -> ModuleT:
    """Return a copy with noise of this standard deviation on every weight."""
    copied = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter += distance * torch.randn(parameter.shape, generator=generator)
    return copied


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every parameter; each must have one."""
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_same_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Compare all parameters, none of which may have had nothing to learn."""
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert float(gradient.abs().max()) > 1e-4, name
        torch.testing.assert_close(
            gradient, theirs[name], msg=lambda m, n=name: f"{n}: {m}", **TOLERANCE
        )
