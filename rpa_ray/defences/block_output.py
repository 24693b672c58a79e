"""The states that leave one block of a decoder, read in chosen forward passes."""

from typing import Any

from torch import Tensor, nn

from rpa_ray.defences.blocks import MLP_NAMES, modules_of_blocks
from rpa_ray.plugin import Forward


class BlockOutput:
    """The hidden states [batch, seq, width] that one block of a decoder hands to the next.

    Its hook is registered once and does nothing outside :meth:`of`.
    """

    def __init__(self, layer: int | None) -> None:
        """Take the block's number from 0, negative from the end; None is the middle one."""
        self._layer = layer
        self._is_reading = False
        self._output: Tensor | None = None

    def attach(self, policy: nn.Module) -> None:
        """Hook the block of a Hugging Face causal language model.

        Raises:
            ValueError: the model has no such block.
        """
        blocks = [block for block, _ in modules_of_blocks(policy, MLP_NAMES)]
        layer = len(blocks) // 2 if self._layer is None else self._layer
        if not -len(blocks) <= layer < len(blocks):
            raise ValueError(
                f"defence.layer must be between {-len(blocks)} and {len(blocks) - 1} for the "
                f"{len(blocks)} blocks found in {type(policy).__name__}, got {layer}. Choose "
                "another layer, or a model whose blocks are known."
            )
        blocks[layer].register_forward_hook(self._leave_block)

    def of(self, forward: Forward[Any], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the states in one forward pass of the model that is hooked."""
        self._is_reading = True
        try:
            forward(input_ids, attention_mask)
        finally:
            self._is_reading = False
            output, self._output = self._output, None
        assert output is not None, "the model that ran is not the one that is hooked"
        return output

    def _leave_block(self, block: nn.Module, args: Any, output: Any) -> None:
        if self._is_reading:
            self._output = output[0] if isinstance(output, tuple) else output
