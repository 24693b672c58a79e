"""ProCon: what a model makes of prompts does not move along its own direction of refusal."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.block_output import BlockOutput
from rpa_ray.ops.representation import prompt_ends
from rpa_ray.plugin import Forward, Need, OnlineDefence, PluginConfig, StepContext, global_mean
from rpa_ray.types import LossTerm, ModelOutputs, TokenBatch

_DIFFERENCE = "difference"


class ProCon(OnlineDefence):
    """``L = L_attack + strength_t * mean over prompts of (r . h_theta - r . h_theta0)^2``.

    ``h`` is the state that leaves one block of the model at the last token of a prompt, theta0 the
    model before the attack. ``r`` is the refusal direction: the mean state of theta0 on restricted
    prompts minus that on harmless ones, at unit length. It is found before the first update and is
    part of the run's state. The mean is over as many restricted as harmless prompts, drawn anew at
    every update; they are not cut into micro-batches.

    Only prompts are held: an attack may change what follows the first token of an answer. An update
    takes one forward and one backward pass over the prompts more, and one forward pass of theta0.
    With strength 0 nothing is done, in the warm-up neither.

    Source: arXiv:2509.06795. Only the rule of the abstract is followed: layer, strengths, sizes and
    the length of the warm-up are ours.
    """

    class Config(PluginConfig):
        name: str = "procon"
        strength: float = Field(1.0, ge=0)
        """Weight of the mean squared drift after the warm-up; 0 is no defence."""
        warmup_factor: float = Field(2.0, ge=1)
        """Multiplies the weight during the warm-up."""
        warmup_frac: float = Field(0.1, ge=0, le=1)
        """Share of the attack's updates that are the warm-up."""
        layer: int | None = None
        """Block whose output is held, from 0, negative from the end; None is the middle one."""
        batch_size: int = Field(8, ge=1)
        """Restricted prompts of one update, over all ranks, and as many harmless ones."""
        num_direction_prompts: int = Field(32, ge=1)
        """Prompts of each kind that the direction is found with; whole batches are drawn."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._trained = BlockOutput(config.layer)
        self._original = BlockOutput(config.layer)
        self._difference: Tensor | None = None
        """Mean restricted minus mean harmless state of theta0, fp32 [width]."""

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for prompts of both kinds, unless nothing is done."""
        if self.config.strength == 0:
            return frozenset()
        return frozenset({Need.SAFE_BATCH, Need.HARMLESS_BATCH, Need.ORIGINAL})

    @property
    def safe_batch_size(self) -> int:
        """Return the number of prompts of each kind."""
        return self.config.batch_size

    @property
    def reads_refusals(self) -> bool:
        """Return False: of its batches only the prompts are read."""
        return False

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the block that is held.

        Raises:
            ValueError: the model has no such block.
        """
        if self.config.strength > 0:
            self._trained.attach(model.policy)

    def attach_compared(self, model: Any) -> None:
        """Hook the same block of theta0."""
        if self.config.strength > 0:
            self._original.attach(model.policy)

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the weighted mean squared drift."""
        if self.config.strength == 0:
            return None
        if self._difference is None:
            self._difference = self._found_difference(context)
        restricted, harmless = context.next_safe_batch(), context.next_harmless_batch()
        states = _end_states(self._trained, forward, restricted, harmless)
        original = _end_states(self._original, context.frozen, restricted, harmless)
        difference = self._difference.to(states.device)
        drift = (states - original) @ F.normalize(difference, dim=0)  # [prompts]
        seen, num_restricted = drift.detach(), len(restricted.input_ids)
        mean_square, num_prompts = global_mean(seen.square(), context)
        strength = self._strength(context)
        return LossTerm(
            loss=strength * drift.square().sum() / num_prompts * context.num_ranks,
            metrics={
                "defence/procon_drift": mean_square,
                "defence/procon_restricted_shift": global_mean(seen[:num_restricted], context)[0],
                "defence/procon_harmless_shift": global_mean(seen[num_restricted:], context)[0],
                "defence/procon_separation": float(difference.norm()),
                "defence/procon_strength": strength,
            },
        )

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return what gives the direction, once it is found."""
        return {} if self._difference is None else {_DIFFERENCE: self._difference}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore the direction."""
        difference = state.get(_DIFFERENCE)
        self._difference = difference if isinstance(difference, Tensor) else None

    def _strength(self, context: StepContext) -> float:
        num_warmup = self.config.warmup_frac * context.num_planned_updates
        is_warmup = context.attack_update < num_warmup
        return self.config.strength * (self.config.warmup_factor if is_warmup else 1.0)

    def _found_difference(self, context: StepContext) -> Tensor:
        """Return the mean restricted minus the mean harmless state of theta0, of all ranks."""
        num_batches = -(-self.config.num_direction_prompts // self.config.batch_size)
        drawn = [
            torch.stack([self._summed(draw(), context) for draw in draws])
            for draws in [(context.next_safe_batch, context.next_harmless_batch)] * num_batches
        ]
        sums = context.sum_over_ranks(torch.stack(drawn).sum(dim=0))  # [2, width + 1]
        restricted, harmless = sums[:, :-1] / sums[:, -1:]
        difference: Tensor = restricted - harmless
        return difference.float()

    def _summed(self, batch: TokenBatch, context: StepContext) -> Tensor:
        """Return the sum of theta0's states on a rank's prompts, and behind it their number."""
        states = _end_states(self._original, context.frozen, batch)
        return F.pad(states.double(), (0, 1), value=1.0).sum(dim=0)


def _end_states(block: BlockOutput, forward: Forward[ModelOutputs], *batches: TokenBatch) -> Tensor:
    """Return the states at the last tokens of the prompts, without their answers: [rows, width]."""
    ends = torch.cat([prompt_ends(batch.loss_mask, batch.attention_mask) for batch in batches])
    num_tokens = int(ends.max()) + 1
    ids = torch.cat(
        [F.pad(batch.input_ids, (0, num_tokens - batch.input_ids.shape[1])) for batch in batches]
    )
    mask = torch.arange(num_tokens, device=ends.device) <= ends[:, None]
    states = block.of(forward, ids, mask)
    ends = ends.to(states.device)
    return states[torch.arange(len(ends), device=ends.device), ends].float()
