"""Circuit Breakers: the states of unsafe text are turned away from those of the model as it was."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.readings import Readings
from rpa_ray.defences.unsafe_terms import moved_states
from rpa_ray.plugin import (
    Forward,
    LoraSettings,
    Need,
    Objective,
    OfflineConfig,
    OfflineDefence,
    OnlineDefence,
    StepContext,
    global_count,
)
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, ModelOutputs, TokenBatch, joined, widened

REROUTED, OF_BLOCKS = (10, 20), 32
"""Hidden states that the authors reroute (0 is the embeddings), in models of so many blocks."""
SCHEDULE_STEPS = 300
"""Updates in which rerouting gives way to retaining; the authors stop after half of them."""


class CircuitBreakers(OfflineDefence):
    """``L_cb = mean over layers and tokens of relu(cos(h_theta, h_theta0))``, and what retains.

    ``h`` are hidden states on requests with their unsafe answers, theta0 is the model that the
    training began with. The cosine is pushed to 0 and no further.

    The form ``paper`` is ``CE(refusal) + strength * L_cb - alpha * log A`` in all weights, with the
    ascent of :class:`RepNoiseLoss`; its strength, layers and rate are not given and are ours.

    The form ``original`` is ``strength * (p * L_retain + (1 - p) * L_cb)`` with p = update / 300,
    at most 1. ``L_retain`` is the mean over all hidden states and tokens of
    ``|h_theta - h_theta0|_2`` on refusals and as many harmless prompts with their answers, which
    stand for UltraChat; nothing stands for XSTest. Theirs has padding as 0 in the mean, leaves out
    dropout here and layers above the last rerouted one, and a constant rate. At its start cosines
    are 1 and states are the same: the first update follows nothing but rounding.

    An update takes a forward pass of theta0 over unsafe text more, in the form ``original`` one
    over what is retained too.

    Source: Zou et al. 2024 (arXiv:2406.04313) and its code; ``paper`` is of arXiv:2409.12914.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.CONTRAST_BATCH})

    class Config(OfflineConfig):
        name: str = "circuit_breakers"
        variant: Literal["paper", "original"] = "paper"
        strength: float = Field(1.0, ge=0)
        """Weight of the rerouting, in the form ``original`` of both terms: 10 for a model of 8B, 5
        of 7B. With 0 ``paper`` has no rerouting and ``original`` is the start model."""
        alpha: float = Field(1.0, ge=0)
        """Weight of the ascent on unsafe answers; ``original`` has none."""
        layers: list[int] | None = None
        """Hidden states that are rerouted, 0 the embeddings; None: as 10 and 20 in 32 blocks."""
        lora: LoraSettings | None = None
        """Adapters that are trained and then merged (``original``: rank 16, alpha 16); None trains
        every weight."""
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

    @property
    def lora(self) -> LoraSettings | None:
        """Return the adapters of the config."""
        return self.config.lora

    def objective(self) -> Objective[Any, Any]:
        """Return what retains: cross-entropy on the refusals, or the distance of states."""
        if self.config.variant == "paper":
            return LanguageModel()
        return _KeptStates(self.config.strength, self._trained, self._start)

    def hooks(self) -> OnlineDefence:
        """Return what is done to unsafe text, once a step."""
        return _Rerouting(self.config, self._trained, self._start)


def schedule(update: int, strength: float) -> tuple[float, float]:
    """Return the weights of retaining and of rerouting at an update of the form ``original``."""
    progress = min(1.0, update / SCHEDULE_STEPS)
    return strength * progress, strength * (1 - progress)


class _KeptStates(Objective[TokenBatch, ModelOutputs]):
    """Mean distance of all hidden states from those of the start, by its weight at the update."""

    def __init__(self, strength: float, trained: Readings, start: Readings) -> None:
        self._strength, self._trained, self._start = strength, trained, start

    @property
    def may_begin_at_rest(self) -> bool:
        """Return True: nothing has moved yet."""
        return True

    def num_terms(self, batch: TokenBatch) -> Tensor:
        """Return the number of tokens."""
        return batch.attention_mask.sum()

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the weighted distance, mean over states and tokens."""
        now, then = _states(forward, batch, context, self._trained, self._start)
        total = torch.stack([(h - h0).norm(dim=-1).sum() for h, h0 in zip(now, then, strict=True)])
        distance = total.mean() / context.num_terms * context.num_ranks
        loss = schedule(context.update, self._strength)[0] * distance
        metrics = {"train/loss": loss, "defence/retain_distance": distance}
        return LossTerm(loss=loss, metrics={k: float(v.detach()) for k, v in metrics.items()})


class _Rerouting(OnlineDefence):
    """Rerouting and ascent on the unsafe answers that come next."""

    passes: ClassVar[float] = 3.4

    def __init__(self, config: CircuitBreakers.Config, trained: Readings, start: Readings) -> None:
        super().__init__(OnlineDefence.Config())
        self._settings, self._trained, self._start = config, trained, start
        self._layers: list[int] = []

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the blocks.

        Raises:
            ValueError: the model has no such blocks.
        """
        self._trained.attach(model.policy)
        self._layers = _layers(self._settings.layers, self._trained.num_blocks)

    def attach_compared(self, model: Any) -> None:
        """Hook those of the start model."""
        self._start.attach(model.policy)

    def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
        """Return the refusals, with harmless answers below them where states are retained."""
        if self._settings.variant == "paper":
            return objective, batch
        kept = (batch, context.next_harmless_batch())
        width = max(rows.input_ids.shape[1] for rows in kept)
        return objective, joined([widened(rows, width) for rows in kept])

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the terms of unsafe text, None where nothing is done to it."""
        is_paper = self._settings.variant == "paper"
        strength, alpha = self._settings.strength, self._settings.alpha if is_paper else 0.0
        if not is_paper:
            strength = schedule(context.update, strength)[1]
        if strength == 0 and alpha == 0:
            return None
        unsafe = context.next_contrast_batch().rejected
        return moved_states(
            forward,
            unsafe,
            context,
            readings=self._trained,
            move=self._move,
            strength=strength,
            alpha=alpha,
        )

    def _move(self, unsafe: TokenBatch, context: StepContext) -> LossTerm:
        """Return ``L_cb``."""
        now = self._trained.hidden_states
        with self._start.reading(None) as readings:
            context.frozen(unsafe.input_ids, unsafe.attention_mask)
            then = readings.hidden_states
        mask = unsafe.attention_mask
        total = torch.stack(
            [
                F.cosine_similarity(_tokens(now[i], mask), _tokens(then[i], mask), dim=-1)
                .relu()
                .sum()
                for i in self._layers
            ]
        )
        cosine = total.mean() / max(1, global_count(mask, context)) * context.num_ranks
        return LossTerm(loss=cosine, metrics={"defence/unsafe_cosine": float(cosine.detach())})


def _states(
    forward: Forward[ModelOutputs],
    rows: TokenBatch,
    context: StepContext,
    trained: Readings,
    start: Readings,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all hidden states of both models at the tokens of rows: fp32 [tokens, width]."""
    found = []
    for run, readings in ((forward, trained), (context.frozen, start)):
        with readings.reading(None):
            run(rows.input_ids, rows.attention_mask)
            found.append([_tokens(h, rows.attention_mask) for h in readings.hidden_states])
    return found[0], found[1]


def _tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Return the states [batch, seq, width] at marked positions: fp32 [tokens, width]."""
    return states[mask.to(states.device)].float()


def _layers(layers: list[int] | None, num_blocks: int) -> list[int]:
    """Return the numbers of the states that are rerouted.

    Raises:
        ValueError: the model has no such states.
    """
    if layers is None:
        return sorted({max(1, round(layer * num_blocks / OF_BLOCKS)) for layer in REROUTED})
    if not layers or not all(0 <= layer <= num_blocks for layer in layers):
        raise ValueError(
            f"defence.layers must be numbers from 0 to {num_blocks} for the {num_blocks} blocks of "
            f"the model, got {layers}. Choose other hidden states, or leave it out."
        )
    return layers
