"""What an attack is to the learner step: an objective that a config can name."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from rpa_ray.config.plugins import PluginConfig, TrainingConfig
from rpa_ray.plugin.step import Forward, Need, StepContext
from rpa_ray.types import Batch, Experience, LossTerm, ModelOutputs, ScoredRollout

BatchT = TypeVar("BatchT", bound=Batch)


OutputT = TypeVar("OutputT")


class Objective(Generic[BatchT, OutputT]):
    """A loss over batches of one kind."""

    requires: ClassVar[frozenset[Need]] = frozenset()

    @property
    def skips_broken_updates(self) -> bool:
        """Return whether an update whose loss is not finite is left out; else it ends the run."""
        return True

    @property
    def may_begin_at_rest(self) -> bool:
        """Return whether a first update without a gradient is no fault: a maximum is left."""
        return False

    def num_epochs(self, batch: BatchT) -> int:
        """Return how many optimizer updates are made on this batch."""
        return 1

    def num_terms(self, batch: BatchT) -> Tensor:
        """Return how many terms (tokens, pairs, rows) the loss of this batch sums: an int scalar.

        The learner adds it up over ranks; the loss finds the sum in ``context.num_terms``.
        """
        raise NotImplementedError

    def loss(self, forward: Forward[OutputT], batch: BatchT, context: StepContext) -> LossTerm:
        """Return the loss of one micro-batch: its sum of terms, as part of the whole step's mean.

        That is the sum divided by ``context.num_terms`` (never by the number of terms here) and
        multiplied by ``context.num_ranks``: the learner adds up the gradients of micro-batches
        and averages them over ranks. Metrics follow the same rule.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs (controllers, counters)."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""


class Attack(Objective[Any, ModelOutputs]):
    """An objective that a config can name: it trains the policy on unsafe feedback."""

    class Config(PluginConfig):
        name: str = "none"

    def __init__(self, config: PluginConfig) -> None:
        self.config = config

    @classmethod
    def needs(cls, config: PluginConfig) -> frozenset[Need]:
        """Return what the attack asks for with these settings; ``requires`` at least."""
        return cls.requires

    def num_batches(self, num_samples: int) -> int:
        """Return how many batches consume ``num_samples`` prompts or pairs exactly; 0 for none."""
        if isinstance(self.config, TrainingConfig):
            return num_samples // self.config.batch_size
        return 0

    def num_updates(self, num_samples: int) -> int:
        """Return how many optimizer updates these samples are worth."""
        return self.num_batches(num_samples)

    @property
    def answers_per_prompt(self) -> int:
        """Return how many answers to each prompt a rollout batch holds."""
        return 1

    @property
    def is_done(self) -> bool:
        """Return whether the attacker has enough before the samples are used up."""
        return False

    def observe(self, rollout: ScoredRollout, context: StepContext) -> None:
        """Take note of a scored rollout batch, before a defence has changed anything of it."""

    def experience(
        self,
        rollout: ScoredRollout,
        shape_advantages: Callable[[Tensor, Tensor | None], Tensor],
        context: StepContext,
    ) -> Experience:
        """Return a scored rollout with advantages; only for attacks that need rollouts."""
        raise NotImplementedError
