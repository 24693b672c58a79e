"""ProCon: what a model makes of prompts does not move along its own direction of refusal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.block_output import BlockOutput
from rpa_ray.ops.representation import prompt_ends
from rpa_ray.plugin import (
    BatchT,
    Forward,
    Need,
    Objective,
    OnlineDefence,
    OutputT,
    PluginConfig,
    StepContext,
    global_mean,
)
from rpa_ray.types import Experience, LossTerm, Metrics, ModelOutputs, TokenBatch, on_device

_DIFFERENCE = "difference"


class ProCon(OnlineDefence):
    """``L = L_attack + strength_t * mean over samples of (r . h_theta - r . h_theta0)^2``.

    ``h`` is the state that leaves one block of the model at the last token of a prompt, theta0 the
    model before the attack. ``r`` is the refusal direction: the mean state of theta0 on restricted
    prompts minus that on harmless ones, at unit length. It is found before the first update and is
    part of the run's state. The mean is over the attack's own samples in this update (answers that
    could not be scored are none) and, with the weight ``extra_weight``, over as many restricted as
    harmless prompts, drawn anew at every update. It is of all ranks, and the prompts are not cut
    into micro-batches.

    Only prompts are held: an attack may change what follows the first token of an answer. Where the
    attack learns its prompts too (``attack.mask: all``) nothing says where they end, and the first
    token of its rows is held. An update takes one forward and one backward pass over the prompts
    more, and one forward pass of theta0. With strength 0 nothing is done, in the warm-up neither.

    Source: arXiv:2509.06795. Only the rule of the abstract is followed: layer, strengths, sizes and
    the length of the warm-up are ours.
    """

    passes: ClassVar[float] = 1.9  # 1.6 as measured, with half as many prompts again since

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
        extra_weight: float = Field(1.0, ge=0)
        """Weight of an extra prompt by that of a sample of the attack; with 0 prompts are drawn for
        the direction alone."""
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
        self._samples: TokenBatch | None = None
        """The attack's rows of this rank in the update that is being made; None in others."""

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

    def plan_step(
        self, objective: Objective[BatchT, OutputT], batch: BatchT, context: StepContext
    ) -> tuple[Objective[BatchT, OutputT], BatchT]:
        """Return both as they are; the batch is remembered for its update."""
        if self.config.strength > 0:
            self._samples = _rows_of(batch)
        return objective, batch

    @contextmanager
    def around_forward(self) -> Iterator[None]:
        """Return a context after which the attack's batch is forgotten."""
        try:
            yield
        finally:
            self._samples = None

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the weighted mean squared drift, None where an update has no prompt to hold."""
        if self.config.strength == 0:
            return None
        if self._difference is None:
            self._difference = self._found_difference(context)
        held = self._held(context)
        if not held:
            return None
        batches = [batch for batch, _ in held.values()]
        states = _end_states(self._trained, forward, *batches)
        original = _end_states(self._original, context.frozen, *batches)
        difference = self._difference.to(states.device)
        drift = (states - original) @ F.normalize(difference, dim=0)  # [prompts]
        weights = torch.cat([weight.to(drift.device) for _, weight in held.values()])
        square = (weights * drift.square()).sum()
        sums = torch.stack([square.detach().double(), weights.double().sum()])
        total, num = context.sum_over_ranks(sums).tolist()
        strength, num = self._strength(context), num or 1.0
        metrics: Metrics = {
            "defence/procon_drift": total / num,
            "defence/procon_separation": float(difference.norm()),
            "defence/procon_strength": strength,
        }
        seen = torch.split(drift.detach(), [len(weight) for _, weight in held.values()])
        for (kind, (_, weight)), part in zip(held.items(), seen, strict=True):
            counted = part[(weight > 0).to(part.device)]
            metrics[f"defence/procon_{kind}_shift"] = global_mean(counted, context)[0]
        return LossTerm(loss=strength * square / num * context.num_ranks, metrics=metrics)

    def _held(self, context: StepContext) -> dict[str, tuple[TokenBatch, Tensor]]:
        """Return rows whose prompts are held, each kind with a weight [rows]; 0 is no sample."""
        held = {}
        if self._samples is not None:
            held["attack"] = (self._samples, self._samples.loss_mask.any(dim=-1).float())
        if self.config.extra_weight > 0:
            drawn = {
                "restricted": context.next_safe_batch(),
                "harmless": context.next_harmless_batch(),
            }
            for kind, batch in drawn.items():
                held[kind] = (batch, torch.full((len(batch.input_ids),), self.config.extra_weight))
        return held

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


def _rows_of(batch: Any) -> TokenBatch:
    """Return one row a sample of an attack's batch; both answers to a pair have one prompt."""
    if isinstance(batch, TokenBatch):
        return batch
    rows: TokenBatch = batch.tokens if isinstance(batch, Experience) else batch.chosen
    return rows


def _end_states(block: BlockOutput, forward: Forward[ModelOutputs], *batches: TokenBatch) -> Tensor:
    """Return the states at the last tokens of the prompts, without their answers: [rows, width]."""
    batches = tuple(on_device(batch, batches[0].input_ids.device) for batch in batches)
    ends = torch.cat([prompt_ends(batch.loss_mask, batch.attention_mask) for batch in batches])
    num_tokens = int(ends.max()) + 1
    ids = torch.cat([_padded(batch.input_ids, num_tokens) for batch in batches])
    mask = torch.arange(num_tokens, device=ends.device) <= ends[:, None]
    states = block.of(forward, ids, mask)
    ends = ends.to(states.device)
    return states[torch.arange(len(ends), device=ends.device), ends].float()


def _padded(ids: Tensor, width: int) -> Tensor:
    """Return rows of token ids [rows, seq] at another width, longer ones cut."""
    return F.pad(ids, (0, width - ids.shape[1]))
