"""RMU: what one layer makes of unsafe text becomes one random vector."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.blocks import MLP_NAMES, modules_of_blocks
from rpa_ray.defences.readings import Readings
from rpa_ray.defences.unsafe_terms import moved_states, widest
from rpa_ray.plugin import (
    Forward,
    Need,
    Objective,
    OfflineConfig,
    OfflineDefence,
    OnlineDefence,
    StepContext,
    global_count,
)
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, ModelOutputs, TokenBatch, widened

LAYER, OF_BLOCKS = 7, 32
"""Block whose output the authors change, in models of so many."""
NUM_TRAINED = 3
"""Blocks up to that one whose down-projections the authors train."""
_TARGET_NORM = "target_norm"


class RMU(OfflineDefence):
    """``L_forget = MSE(h(unsafe), c * u)``, and what retains.

    ``h`` is the output of one block, before any norm. ``u`` has entries drawn from Uniform(0, 1)
    and length 1, so that it lies in the positive orthant; it depends on ``seed`` and width alone.

    The form ``paper`` is ``CE(refusal) + strength * L_forget - alpha * log A`` in all weights, with
    the ascent of :class:`RepNoiseLoss`, and its error is a mean over the tokens of unsafe answers.
    Its c, layer and weight are not given and are ours.

    The form ``original`` is ``strength * L_forget + retain_weight * MSE(h(retain), h0(retain))``,
    ``h0`` of the model that the training began with. Only the down-projections of the MLPs of the
    block and the two before it are trained. Both errors are means over all positions of the texts,
    padding included. Harmless prompts with their answers stand for the corpus that is retained; the
    refusals of the defence split are not read.

    Source: Li et al. 2024 (arXiv:2403.03218) and its code; ``paper`` is of arXiv:2409.12914.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.CONTRAST_BATCH})

    class Config(OfflineConfig):
        name: str = "rmu"
        variant: Literal["paper", "original"] = "paper"
        strength: float = Field(1.0, ge=0)
        """Weight of forgetting. With 0 ``paper`` forgets nothing and ``original`` is the start
        model."""
        alpha: float = Field(1.0, ge=0)
        """Weight of the ascent on unsafe answers; ``original`` has none."""
        retain_weight: float = Field(1200.0, ge=0)
        """Weight of retaining in the form ``original``: 1200 for Zephyr 7B, 100 where they leave it
        out."""
        layer: int | None = Field(None, ge=0)
        """Block whose output changes, from 0; None: as 7 in 32 blocks."""
        multiple: float = Field(1.5, ge=0)
        """c by the median length of the block's output at the tokens of the first unsafe batch; far
        above 2 it destroys a model at once."""
        target_norm: float | None = Field(None, ge=0)
        """c itself (6.5 for Zephyr 7B), in place of ``multiple``."""
        seed: int = Field(0, ge=0)
        """Of the random vector."""
        learning_rate: float = Field(4e-5, gt=0)
        num_steps: int = Field(877, ge=1)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._trained, self._start = Readings(), Readings()

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for unsafe answers, and for harmless ones where these are retained."""
        is_original = self.config.variant == "original"
        return self.requires | ({Need.HARMLESS_BATCH} if is_original else set())

    def objective(self) -> Objective[Any, Any]:
        """Return what retains: cross-entropy on the refusals, or the error of one layer."""
        if self.config.variant == "paper":
            return LanguageModel()
        return _KeptLayer(self.config, self._trained, self._start)

    def hooks(self) -> OnlineDefence:
        """Return what is done to unsafe text, once a step."""
        return _Forgetting(self.config, self._trained, self._start)


class _KeptLayer(Objective[TokenBatch, ModelOutputs]):
    """Squared error of one block's output against the start's, mean over positions and width."""

    def __init__(self, config: RMU.Config, trained: Readings, start: Readings) -> None:
        self._settings, self._trained, self._start = config, trained, start

    @property
    def may_begin_at_rest(self) -> bool:
        """Return True: nothing has moved yet."""
        return True

    def num_terms(self, batch: TokenBatch) -> Tensor:
        """Return the number of positions, padding included."""
        return torch.tensor(batch.input_ids.numel())

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the weighted error."""
        layer = _layer(self._settings.layer, self._trained.num_blocks)
        with self._trained.reading(None) as readings:
            forward(batch.input_ids, batch.attention_mask)
            now = readings.block_outputs[layer].float()
        with self._start.reading(None) as readings:
            context.frozen(batch.input_ids, batch.attention_mask)
            then = readings.block_outputs[layer].float()
        error = (now - then).square().mean(dim=-1).sum() / context.num_terms * context.num_ranks
        loss = self._settings.retain_weight * error
        metrics = {"train/loss": loss, "defence/retain_error": error}
        return LossTerm(loss=loss, metrics={k: float(v.detach()) for k, v in metrics.items()})


class _Forgetting(OnlineDefence):
    """Forgetting and ascent on the unsafe answers that come next."""

    passes: ClassVar[float] = 3.1

    def __init__(self, config: RMU.Config, trained: Readings, start: Readings) -> None:
        super().__init__(OnlineDefence.Config())
        self._settings, self._trained, self._start = config, trained, start
        self._layer = 0
        self._target_norm = config.target_norm

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the blocks; in the form ``original``, freeze all but three down-projections.

        Raises:
            ValueError: the model has no such block.
        """
        self._trained.attach(model.policy)
        self._layer = _layer(self._settings.layer, self._trained.num_blocks)
        if self._settings.variant == "original":
            model.requires_grad_(False)
            blocks = modules_of_blocks(model.policy, MLP_NAMES)
            for _, mlp in blocks[max(0, self._layer + 1 - NUM_TRAINED) : self._layer + 1]:
                matrices = [weight for weight in mlp.parameters() if weight.ndim == 2]
                matrices[-1].requires_grad_(True)

    def attach_compared(self, model: Any) -> None:
        """Hook the blocks of the start model."""
        self._start.attach(model.policy)

    def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
        """Return the refusals, or the harmless answers that are retained."""
        if self._settings.variant == "paper":
            return objective, batch
        harmless = context.next_harmless_batch()
        return objective, widened(harmless, widest(harmless.input_ids, context))

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the terms of unsafe text, None where nothing is done to it."""
        is_paper = self._settings.variant == "paper"
        strength, alpha = self._settings.strength, self._settings.alpha if is_paper else 0.0
        if strength == 0 and alpha == 0:
            return None
        unsafe = context.next_contrast_batch().rejected
        if not is_paper:
            unsafe = widened(unsafe, widest(unsafe.input_ids, context))
            unsafe = replace(unsafe, loss_mask=torch.ones_like(unsafe.loss_mask))
        return moved_states(
            forward,
            unsafe,
            context,
            readings=self._trained,
            move=self._move,
            strength=strength,
            alpha=alpha,
        )

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return the length that was measured."""
        return {} if self._target_norm is None else {_TARGET_NORM: self._target_norm}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore it."""
        if _TARGET_NORM in state:
            self._target_norm = float(state[_TARGET_NORM])

    def _move(self, unsafe: TokenBatch, context: StepContext) -> LossTerm:
        """Return ``L_forget`` at the marked positions."""
        states = self._trained.block_outputs[self._layer].float()  # [batch, seq, width]
        mask = unsafe.loss_mask.to(states.device)
        if self._target_norm is None:
            tokens = unsafe.attention_mask.to(states.device)
            median = _median_norm(states.detach(), tokens, context)
            self._target_norm = self._settings.multiple * median
        target = self._target_norm * direction(states.shape[-1], self._settings.seed)
        total = (states[mask] - target.to(states.device)).square().mean(dim=-1).sum()
        error = total / max(1, global_count(mask, context)) * context.num_ranks
        metrics = {"defence/forget_error": float(error.detach())}
        return LossTerm(loss=error, metrics=metrics | {"defence/target_norm": self._target_norm})


def direction(width: int, seed: int) -> Tensor:
    """Return ``u``: fp32 [width], the same on every rank."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=0)


def _median_norm(states: Tensor, tokens: Tensor, context: StepContext) -> float:
    """Return the median length of the states at the tokens of all ranks."""
    norms = states.norm(dim=-1).masked_fill(~tokens, torch.nan)
    padding = widest(norms, context) - norms.shape[1]
    norms = F.pad(norms, (0, padding), value=torch.nan)
    return float(context.gather_rows(norms).nanmedian())


def _layer(layer: int | None, num_blocks: int) -> int:
    """Return the number of the block whose output changes.

    Raises:
        ValueError: the model has no such block.
    """
    if layer is None:
        return round(LAYER * num_blocks / OF_BLOCKS)
    if layer >= num_blocks:
        raise ValueError(
            f"defence.layer must be at most {num_blocks - 1} for the {num_blocks} blocks of the "
            f"model, got {layer}. Choose another layer, or leave it out."
        )
    return layer
