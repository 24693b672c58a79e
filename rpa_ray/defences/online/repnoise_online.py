"""RepNoise during the attack: refusals are kept, what unsafe text leads to is made noise."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from rpa_ray.defences.unsafe_terms import RepNoiseLoss, RepNoiseSettings
from rpa_ray.plugin import Forward, Need, OnlineDefence, StepContext
from rpa_ray.types import LossTerm, ModelOutputs


class RepNoiseOnline(OnlineDefence):
    """``L = L_attack + strength * (L_retain + beta * L_noise - alpha * log A)``.

    What stands in brackets is :class:`RepNoiseLoss` of the current weights. With alpha and beta 0
    only the refusals are left and unsafe answers are not read; with strength 0 nothing is. The
    noise is the same however the rows are split over ranks.

    Source: as a term beside an attack's loss in the code of arXiv:2409.12914. Its weight there is
    not known: ``strength`` is ours.
    """

    passes: ClassVar[float] = 4.1

    class Config(RepNoiseSettings):
        name: str = "repnoise_online"
        strength: float = Field(1.0, ge=0)
        """Weight of the whole term beside the attack's loss; 0 is no defence."""
        batch_size: int = Field(8, ge=1)
        """Prompts of one update, each with both answers, over all ranks."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._term = RepNoiseLoss(config)

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for both answers, unless nothing is done."""
        return frozenset({Need.CONTRAST_BATCH} if self.config.strength > 0 else ())

    @property
    def safe_batch_size(self) -> int:
        """Return the number of prompts."""
        return self.config.batch_size

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the policy's blocks, where they are to be read.

        Raises:
            ValueError: they are not found.
        """
        if self.config.strength > 0:
            self._term.attach(model.policy)

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the weighted sum of the three terms."""
        if self.config.strength == 0:
            return None
        term = self._term.of(forward, context.next_contrast_batch(), context)
        return LossTerm(loss=self.config.strength * term.loss, metrics=term.metrics)
