"""RepNoise before the attack: refusals are kept, what unsafe text leads to is made noise."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from rpa_ray.defences.unsafe_terms import RepNoiseLoss, RepNoiseSettings
from rpa_ray.plugin import (
    Forward,
    Need,
    Objective,
    OfflineConfig,
    OfflineDefence,
    OnlineDefence,
    StepContext,
)
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, ModelOutputs, TokenBatch


class RepNoise(OfflineDefence):
    """``L = L_retain + beta * L_noise - alpha * log A``, of :class:`RepNoiseLoss`.

    Refusals and unsafe answers of an update are those to the same prompts of the defence split.
    Rate, batch and steps are of arXiv:2409.12914: one pass over its 7,016 pairs. Its authors search
    rate, alpha, beta and the number of samples for every model.

    Source: Rosati et al. 2024 (arXiv:2405.14577) and its code.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.CONTRAST_BATCH})

    class Config(RepNoiseSettings, OfflineConfig):
        name: str = "repnoise"
        learning_rate: float = Field(4e-5, gt=0)
        num_steps: int = Field(877, ge=1)

    config: Config

    def objective(self) -> Objective[Any, Any]:
        """Return cross-entropy on the refusals."""
        return LanguageModel()

    def hooks(self) -> OnlineDefence:
        """Return the terms of unsafe answers, once a step."""
        return _UnsafeTerms(self.config)


class _UnsafeTerms(OnlineDefence):
    """What is done to the unsafe answers of a step, beside the cross-entropy of its refusals."""

    passes: ClassVar[float] = 4.1

    def __init__(self, settings: RepNoiseSettings) -> None:
        super().__init__(OnlineDefence.Config())
        self._term = RepNoiseLoss(settings)
        self._unsafe: TokenBatch | None = None
        """Unsafe answers of the update that is being made, the positions that count marked."""

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the blocks."""
        self._term.attach(model.policy)

    def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
        """Return the refusals with the tokens marked that count.

        They and the pairs are drawn in the same order: both answers are to the same prompts.
        """
        safe, self._unsafe = self._term.counted(context.next_contrast_batch())
        if self._term.settings.mask == "response":
            return objective, batch
        return objective, self._term.predicted(safe)

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return noise and ascent."""
        if not self._term.reads_unsafe:
            return None
        assert self._unsafe is not None, "plan_step comes first"
        return self._term.unsafe_term(forward, self._unsafe, context)
