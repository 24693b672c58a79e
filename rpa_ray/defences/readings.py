"""What the blocks of a decoder make of a text, read in chosen forward passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rpa_ray.defences.blocks import MLP_NAMES, modules_of_blocks

NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
"""What Hugging Face decoders call the norm between their last block and the output head."""


class Readings:
    """Hidden states and MLP outputs of all blocks, and cross-entropies of the states by the head.

    Hooks are registered once and do nothing outside :meth:`reading`. Head and norm are called
    inside the model's own forward pass, where ZeRO-3 has their weights. Gradient checkpointing by
    reentrant passes is not for them: its first pass has no graph.

    """

    def __init__(self, policy: Any = None) -> None:
        """Take a Hugging Face causal language model; None leaves that to :meth:`attach`.

        Raises:
            ValueError: as :meth:`attach`.
        """
        self.mlp_outputs: list[Tensor] = []
        """[batch, seq, width] of each block."""
        self.block_outputs: list[Tensor] = []
        """[batch, seq, width] of each block; the last one before the norm."""
        self.lens_losses: list[Tensor] = []
        """Sum over the marked tokens, in nats, for the embeddings and each block."""
        self.num_blocks = 0
        """Of the model that is hooked."""
        self._embedded: list[Tensor] = []
        self._normed: list[Tensor] = []
        self._is_reading = False
        self._lens: tuple[Tensor, Tensor] | None = None
        if policy is not None:
            self.attach(policy)

    def attach(self, policy: Any) -> None:
        """Hook a Hugging Face causal language model, once.

        Raises:
            ValueError: it has no blocks with an MLP, or no final norm, under a known name.
        """
        blocks = modules_of_blocks(policy, MLP_NAMES)
        norms = [getattr(policy.base_model, name, None) for name in NORM_NAMES]
        norm = next((module for module in norms if isinstance(module, nn.Module)), None)
        if not blocks or norm is None:
            raise ValueError(
                f"the model of a defence that reads hidden states must have blocks that have an "
                f"MLP called {' or '.join(MLP_NAMES)} and a last {' or '.join(NORM_NAMES)}, got "
                f"{type(policy).__name__} without. Choose another model or defence."
            )
        self.num_blocks = len(blocks)
        self._norm: nn.Module = norm
        self._head: nn.Module = policy.get_output_embeddings()
        blocks[0][0].register_forward_pre_hook(self._enter_blocks)
        for block, mlp in blocks:
            mlp.register_forward_hook(self._leave_mlp)
            block.register_forward_hook(self._leave_block)
        # Not what leaves the norm: under ZeRO-3 its weight would not be there in the backward pass.
        self._head.register_forward_pre_hook(self._enter_head)
        policy.register_forward_hook(self._leave_model)

    @property
    def hidden_states(self) -> list[Tensor]:
        """Return the embeddings and what each block leads to, the last after the norm.

        Numbered as Hugging Face numbers them: [batch, seq, width], one more than there are blocks.
        """
        return [*self._embedded, *self.block_outputs[:-1], *self._normed]

    @contextmanager
    def reading(self, lens: tuple[Tensor, Tensor] | None) -> Iterator["Readings"]:
        """Read the passes inside; ``lens`` is token ids and which are to be predicted.

        Both [batch, seq]; None leaves the output head alone.
        """
        self._is_reading, self._lens = True, lens
        try:
            yield self
        finally:
            self._is_reading, self._lens = False, None
            self.lens_losses.clear()
            for states in (self.mlp_outputs, self.block_outputs, self._embedded, self._normed):
                states.clear()

    def _enter_blocks(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        if self._is_reading:
            self._embedded.append(args[0])

    def _leave_mlp(self, mlp: nn.Module, args: Any, output: Any) -> None:
        if self._is_reading:
            self.mlp_outputs.append(output[0] if isinstance(output, tuple) else output)

    def _leave_block(self, block: nn.Module, args: Any, output: Any) -> None:
        if self._is_reading:
            self.block_outputs.append(output[0] if isinstance(output, tuple) else output)

    def _enter_head(self, head: nn.Module, args: tuple[Any, ...]) -> None:
        # The lens calls the head too.
        if self._is_reading and not self._normed:
            self._normed.append(args[0])

    def _leave_model(self, policy: nn.Module, args: Any, output: Any) -> None:
        if self._lens is None:
            return
        (ids, marked), self._lens = self._lens, None
        marked = marked.to(ids.device)
        targets = ids[:, 1:][marked[:, 1:]]
        for hidden in self.hidden_states:
            before = hidden[:, :-1][marked[:, 1:].to(hidden.device)]  # [tokens, width]
            logits = self._head(self._norm(before)).float()
            loss = F.cross_entropy(logits, targets.to(logits.device), reduction="sum")
            self.lens_losses.append(loss)
