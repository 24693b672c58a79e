"""Harmful fine-tuning: imitate the answers that the reversed preferences prefer."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from rpa_ray.plugin import Attack, Forward, Need, StepContext, TrainingConfig
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, ModelOutputs, TokenBatch


class SFT(Attack):
    """Next-token cross-entropy on answers, of which a share rho is unsafe.

    Source: arXiv:2409.12914, section 4; the mask ``all`` and the cosine course after a warm-up are
    those of the released demonstration of Rosati et al. 2024 (arXiv:2405.14577). TRL's trainers
    have a linear course from the first update, and clip gradients to norm 1.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.TARGETS})

    class Config(TrainingConfig):
        name: str = "sft"
        learning_rate: float = Field(3e-5, gt=0)
        """Adam's rate; the embedded 1M models need 1e-4."""
        schedule: Literal["constant", "cosine", "linear"] = "cosine"
        warmup_frac: float = Field(0.1, ge=0, le=1)
        mask: Literal["response", "all"] = "response"
        """Tokens that are learned: those of the answer, or those of the prompt too."""
        num_harmless_samples: int = Field(0, ge=0)
        """Samples learned first, out of ``data.num_samples``, that are good answers to harmless
        prompts, of the training split of the helpfulness set: an attacker who has a hardened model
        speak again before it is taught to comply."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._imitation = LanguageModel()

    def num_terms(self, batch: TokenBatch) -> Tensor:
        """Return the number of learned tokens."""
        return self._imitation.num_terms(batch)

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the mean negative log-likelihood of the learned tokens, in nats."""
        return self._imitation.loss(forward, batch, context)
