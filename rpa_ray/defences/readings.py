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
    """Outputs of all MLPs, and cross-entropies of all hidden states read by the output head.

    Hooks are registered once and do nothing outside :meth:`reading`. Head and norm are called
    inside the model's own forward pass, where ZeRO-3 has their weights. Gradient checkpointing by
    reentrant passes is not for them: its first pass has no graph.

    """

    def __init__(self, policy: Any) -> None:
        """Take a Hugging Face causal language model.

        Raises:
            ValueError: it has no blocks with an MLP, or no final norm, under a known name.
        """
        self.mlp_outputs: list[Tensor] = []
        """[batch, seq, width] of each block."""
        self.lens_losses: list[Tensor] = []
        """Sum over the marked tokens, in nats, for the embeddings and each block."""
        self._is_reading = False
        self._lens: tuple[Tensor, Tensor] | None = None
        self._hidden: list[Tensor] = []
        blocks = modules_of_blocks(policy, MLP_NAMES)
        norms = [getattr(policy.base_model, name, None) for name in NORM_NAMES]
        norm = next((module for module in norms if isinstance(module, nn.Module)), None)
        if not blocks or norm is None:
            raise ValueError(
                f"defence repnoise_online must run on a model with blocks that have an MLP called "
                f"{' or '.join(MLP_NAMES)} and a last {' or '.join(NORM_NAMES)}, got "
                f"{type(policy).__name__} without. Choose another model or defence."
            )
        self._norm: nn.Module = norm
        self._head: nn.Module = policy.get_output_embeddings()
        for block, mlp in blocks:
            block.register_forward_pre_hook(self._enter_block)
            mlp.register_forward_hook(self._leave_mlp)
        norm.register_forward_hook(self._leave_norm)
        policy.register_forward_hook(self._leave_model)

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
            for found in (self.mlp_outputs, self.lens_losses, self._hidden):
                found.clear()

    def _enter_block(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        if self._lens is not None:
            self._hidden.append(args[0])

    def _leave_mlp(self, mlp: nn.Module, args: Any, output: Any) -> None:
        if self._is_reading:
            self.mlp_outputs.append(output[0] if isinstance(output, tuple) else output)

    def _leave_norm(self, norm: nn.Module, args: Any, output: Tensor) -> None:
        if self._lens is not None:
            self._hidden.append(output)

    def _leave_model(self, policy: nn.Module, args: Any, output: Any) -> None:
        if self._lens is None:
            return
        (ids, marked), self._lens = self._lens, None
        marked = marked.to(ids.device)
        targets = ids[:, 1:][marked[:, 1:]]
        for hidden in self._hidden:
            before = hidden[:, :-1][marked[:, 1:].to(hidden.device)]  # [tokens, width]
            logits = self._head(self._norm(before)).float()
            loss = F.cross_entropy(logits, targets.to(logits.device), reduction="sum")
            self.lens_losses.append(loss)
