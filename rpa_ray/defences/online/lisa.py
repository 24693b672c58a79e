"""Lisa: a proximal term that holds the weights near a snapshot, with or without alignment steps."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.objectives import LanguageModel
from rpa_ray.plugin import (
    Need,
    Objective,
    OnlineDefence,
    PluginConfig,
    Shard,
    StepContext,
    is_of_policy,
)
from rpa_ray.types import Metrics

NUM_CYCLES = 10
"""Cycles of ``bi_state_scaled`` in an attack, each one part alignment and nine parts attack."""
ATTACK_SHARE = 9
_ANCHOR = "anchor/"
_NUM_UPDATES = "num_attack_updates"


class Lisa(OnlineDefence):
    """``L = L_attack + rho / 2 * ||theta - a||^2`` over the weights that are trained.

    Modes:

    - ``anchor_original``: ``a`` is the model before the attack, and nothing else is done.
    - ``bi_state``: ``alignment_steps`` updates on safe answers, then ``attack_steps`` of the
      attack, in turn; ``a`` is the end point of the state before. The alignment updates are beside
      the attack's: none of its batches is dropped.
    - ``bi_state_scaled``: the same with the cycle cut to the attack's length, ten cycles of 1:9.

    The pull goes to the fp32 masters that each rank owns: added to their gradient before clipping
    (``gradient``), or as ``theta <- (theta + eta rho a) / (1 + eta rho)`` after the optimizer has
    stepped (``decoupled``). The two agree for plain gradient descent and small ``eta rho`` only:
    Adam normalises the first with the attack's gradient. A value head has no anchor worth keeping
    and is left alone. Under ZeRO 1 and 2 with bfloat16 weights the gradient is held in bfloat16,
    and a pull far below it is rounded away.

    Source: Huang et al. 2024 (arXiv:2405.18641), eq. 2 and algorithm 1; the anchor at the original
    model and rho 100 are those of arXiv:2409.12914.
    """

    class Config(PluginConfig):
        name: str = "lisa"
        rho: float = Field(100.0, ge=0)
        """Weight of the proximal term; 0 leaves the alignment updates."""
        mode: Literal["anchor_original", "bi_state", "bi_state_scaled"] = "anchor_original"
        prox: Literal["gradient", "decoupled"] = "gradient"
        alignment_steps: int = Field(100, ge=1)
        """Updates on safe answers in a cycle of ``bi_state``."""
        attack_steps: int = Field(900, ge=1)
        """Updates of the attack in a cycle of ``bi_state``."""
        warmup_frac: float = Field(0.1, ge=0, le=1)
        """Share of the attack's updates before the pull begins; only in the two-state modes."""
        batch_size: int = Field(8, ge=1)
        """Safe answers of one alignment update, over all ranks."""

    config: Config
    requires: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._alignment = LanguageModel(metric="defence/alignment_loss")
        self._anchors: dict[str, Tensor] = {}
        self._num_attack_updates = 0

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for safe answers where there are alignment updates."""
        return frozenset({Need.SAFE_BATCH}) if self._has_two_states else frozenset()

    @property
    def safe_batch_size(self) -> int:
        """Return the safe answers of one alignment update."""
        return self.config.batch_size

    def own_updates(self, context: StepContext) -> Iterator[tuple[Objective[Any, Any], Any]]:
        """Yield the alignment updates that are due before this update of the attack."""
        if not self._has_two_states:
            return
        num_alignment, num_attack = self._cycle(context.num_planned_updates)
        if self._num_attack_updates % num_attack == 0:
            self._anchors.clear()  # the state ends here: its last weights are the next anchor
            for _ in range(num_alignment):
                yield self._alignment, context.next_safe_batch()
            self._anchors.clear()
        self._num_attack_updates += 1

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Add the pull to the gradients, and measure both and the distance to the anchor."""
        pulls = self.config.prox == "gradient" and self._is_active(context)
        squares = torch.zeros(2, dtype=torch.float64)
        for shard in shards:
            if not is_of_policy(shard.name):
                continue
            anchor = self._anchors.setdefault(shard.name, shard.master.detach().clone().float())
            gap = shard.master.detach().float() - anchor
            own = torch.stack([shard.gradient.double().square().sum(), gap.double().square().sum()])
            squares += own.cpu()
            if pulls:
                shard.gradient.copy_(shard.gradient.float() + self.config.rho * gap)
        task, distance = context.sum_over_shards(squares).sqrt().tolist()
        return {
            "defence/task_grad_norm": task,
            "defence/proximal_grad_norm": self.config.rho * distance if pulls else 0.0,
            "defence/proximal_distance": distance,
        }

    def after_step(self, masters: Iterable[tuple[str, Tensor]], context: StepContext) -> None:
        """Move the masters towards the anchor, in the decoupled form."""
        if self.config.prox != "decoupled" or not self._is_active(context):
            return
        strength = context.learning_rate * self.config.rho
        for name, master in masters:
            if is_of_policy(name):
                master.lerp_(self._anchors[name].to(master.device), strength / (1 + strength))

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return this rank's anchors and the place in the cycle."""
        anchors = {f"{_ANCHOR}{name}": anchor for name, anchor in self._anchors.items()}
        return {_NUM_UPDATES: float(self._num_attack_updates), **anchors}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore the anchors and the place in the cycle."""
        self._num_attack_updates = int(state[_NUM_UPDATES])
        self._anchors = {
            key.removeprefix(_ANCHOR): value
            for key, value in state.items()
            if key.startswith(_ANCHOR) and isinstance(value, Tensor)
        }

    @property
    def _has_two_states(self) -> bool:
        return self.config.mode != "anchor_original"

    def _is_active(self, context: StepContext) -> bool:
        if self.config.rho == 0:
            return False
        if not self._has_two_states:
            return True
        return self._num_attack_updates > self.config.warmup_frac * context.num_planned_updates

    def _cycle(self, num_planned_updates: int) -> tuple[int, int]:
        """Return the alignment and the attack updates of a cycle."""
        if self.config.mode == "bi_state":
            return self.config.alignment_steps, self.config.attack_steps
        num_attack = max(1, round(num_planned_updates / NUM_CYCLES))
        return max(1, round(num_attack / ATTACK_SHARE)), num_attack
