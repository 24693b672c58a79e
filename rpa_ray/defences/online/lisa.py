"""Lisa: a proximal term that holds the weights near a snapshot, with or without alignment steps."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from rpa_ray.defences.online.proximal import Proximal
from rpa_ray.plugin import Need, Objective, StepContext
from rpa_ray.plugin.objectives import LanguageModel

NUM_CYCLES = 10
"""Cycles of ``bi_state_scaled`` in an attack, each one part alignment and nine parts attack."""
ATTACK_SHARE = 9
_NUM_UPDATES = "num_attack_updates"


class Lisa(Proximal):
    """The proximal term with an anchor ``a`` on the model's own way.

    Modes:

    - ``anchor_original``: ``a`` is the model before the attack, and nothing else is done.
    - ``bi_state``: ``alignment_steps`` updates on safe answers, then ``attack_steps`` of the
      attack, in turn; ``a`` is the end point of the state before. The alignment updates are beside
      the attack's: none of its batches is dropped.
    - ``bi_state_scaled``: the same with the cycle cut to the attack's length: ten cycles, and one
      alignment update to nine of the attack over all.

    An alignment update has the learning rate of the attack's update after it.

    Source: Huang et al. 2024 (arXiv:2405.18641), eq. 2 and algorithm 1; the anchor at the original
    model and rho 100 are those of arXiv:2409.12914.
    """

    class Config(Proximal.Config):
        name: str = "lisa"
        mode: Literal["anchor_original", "bi_state", "bi_state_scaled"] = "anchor_original"
        """With ``rho`` 0 the alignment updates of the other two are left."""
        alignment_steps: int = Field(100, ge=1)
        """Updates on safe answers in a cycle of ``bi_state``."""
        attack_steps: int = Field(900, ge=1)
        """Updates of the attack in a cycle of ``bi_state``."""
        warmup_frac: float = Field(0.1, ge=0, le=1)
        """Share of the attack's updates before the pull begins; only in the two-state modes."""
        batch_size: int = Field(8, ge=1)
        """Safe answers of one alignment update, over all ranks."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._alignment = LanguageModel(metric="defence/alignment_loss")
        self._num_attack_updates = 0

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for safe answers where there are alignment updates."""
        return frozenset({Need.SAFE_BATCH}) if self._has_two_states else frozenset()

    @property
    def reads_refusals(self) -> bool:
        """Return False: its authors align on safe answers of any kind."""
        return False

    @property
    def safe_batch_size(self) -> int:
        """Return the safe answers of one alignment update."""
        return self.config.batch_size

    def own_updates(self, context: StepContext) -> Iterator[tuple[Objective[Any, Any], Any]]:
        """Yield the alignment updates that are due before this update of the attack."""
        if not self._has_two_states:
            return
        num_due = self._num_due(context.num_planned_updates)
        if num_due:
            self.anchors.clear()  # the state ends here: its last weights are the next anchor
            for _ in range(num_due):
                yield self._alignment, context.next_safe_batch()
            self.anchors.clear()
        self._num_attack_updates += 1

    def is_active(self, context: StepContext) -> bool:
        """Return whether this update is pulled: in two states not before the warm-up is over."""
        if self.config.rho == 0:
            return False
        if not self._has_two_states:
            return True
        return self._num_attack_updates > self.config.warmup_frac * context.num_planned_updates

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return this rank's anchors and the place in the cycle."""
        return {_NUM_UPDATES: float(self._num_attack_updates), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore the anchors and the place in the cycle."""
        self._num_attack_updates = int(state[_NUM_UPDATES])
        super().load_state_dict(state)

    @property
    def _has_two_states(self) -> bool:
        return self.config.mode != "anchor_original"

    def _num_due(self, num_planned_updates: int) -> int:
        """Return the alignment updates before the coming one of the attack; none within a state."""
        done = self._num_attack_updates
        if self.config.mode == "bi_state":
            return 0 if done % self.config.attack_steps else self.config.alignment_steps

        def num_after(num_begun: int) -> int:
            return round(num_begun * num_planned_updates / ATTACK_SHARE / NUM_CYCLES)

        def num_begun(num_updates: int) -> int:
            """Return the cycles that so many updates of the attack belong to."""
            return -(-num_updates * NUM_CYCLES // max(1, num_planned_updates))

        return num_after(num_begun(done + 1)) - num_after(num_begun(done))
