"""Where the parts of a decoder's blocks are, whatever the architecture calls them."""

from collections.abc import Sequence

from torch import nn

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
"""What the blocks of Hugging Face decoders call their attention module."""
MLP_NAMES = ("mlp", "feed_forward", "ffn")
"""What they call their MLP."""


def modules_of_blocks(model: nn.Module, names: Sequence[str]) -> list[tuple[nn.Module, nn.Module]]:
    """Return each block with its module of one of the names, in the model's order.

    Of nested ones the outermost is taken.
    """
    found: list[tuple[nn.Module, nn.Module]] = []
    inside: set[nn.Module] = set()
    for block in model.modules():
        if block in inside:
            continue
        for name in names:
            module = getattr(block, name, None)
            if isinstance(module, nn.Module):
                found.append((block, module))
                inside.update(module.modules())
    return found
