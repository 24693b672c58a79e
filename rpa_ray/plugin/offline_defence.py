"""What an offline defence is: a training of the model before it is released and attacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rpa_ray.config.plugins import (
    LoraSettings,
    MixedOfflineConfig,
    OfflineConfig,
    SampledOfflineConfig,
)
from rpa_ray.plugin.attack import Objective
from rpa_ray.plugin.online_defence import OnlineDefence
from rpa_ray.plugin.step import Need


class OfflineDefence:
    """Hardens weights: an objective on the defence split's refusals, with hooks around its steps.

    What it makes is a model like any other, kept under a key that holds the config and the model it
    began with. The attack that follows is untouched and knows nothing of it; what is measured
    before that attack is the hardened model, and distances are from it.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    """Batches that objective or hooks draw from their context, of ``config.batch_size`` rows:
    ``SAFE_BATCH``, ``CONTRAST_BATCH``, ``HARMLESS_BATCH``. ``context.frozen`` is the model that the
    defence began with."""

    class Config(OfflineConfig):
        name: str

    def __init__(self, config: OfflineConfig) -> None:
        self.config = config

    @property
    def passes(self) -> float:
        """Return the time of a step's passes by that of one over its batch; 1 up to a tenth more.

        An update of the weights is not in it.
        """
        return self.hooks().passes

    @property
    def num_moves(self) -> int:
        """Return how often a step moves the weights, what it takes back among it."""
        return 1

    @property
    def num_shard_copies(self) -> int:
        """Return the fp32 copies that a step keeps: :attr:`OnlineDefence.num_shard_copies`."""
        return self.hooks().num_shard_copies

    @property
    def needs(self) -> frozenset[Need]:
        """Return what the defence asks for with these settings; ``requires`` at least."""
        return self.requires

    @property
    def reads_harmless(self) -> bool:
        """Return whether it learns from harmless prompts too."""
        return Need.HARMLESS_BATCH in self.needs

    @property
    def lora(self) -> LoraSettings | None:
        """Return the adapters that are trained, and merged at the end; None trains every weight."""
        return None

    def objective(self) -> Objective[Any, Any]:
        """Return what is trained on; its batches are refusals of the defence split [rows, seq]."""
        raise NotImplementedError

    def hooks(self) -> OnlineDefence:
        """Return what acts around each step of the hardening; nothing, as a rule."""
        return OnlineDefence(OnlineDefence.Config())


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledAnswer:
    """What a hardening knows of an answer that its model gave."""

    is_restricted: bool
    """Whether the prompt is a restricted one; the others are harmless."""
    num_tokens: int
    """Of the answer, without its end."""
    refuses: bool
    """Whether it has the words of a refusal."""
    informs: bool
    """Whether it has the words of a list or of an explanation."""
    p_harm: float
    """Harm probability by the judge that training may use; NaN without one."""
    helpfulness: float
    """What the helpfulness reward model gives it; NaN without one."""


class SampledOfflineDefence(OfflineDefence):
    """Hardens by the attack ``grpo`` on the model's own answers, with rewards of its own.

    Its prompts are restricted ones. Its hooks see every rollout, as an online defence's do:
    entropies, costs or another loss on the groups are theirs.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS, Need.REFERENCE})
    config: SampledOfflineConfig

    @property
    def lora(self) -> LoraSettings | None:
        """Return the adapters that are trained, and merged at the end; None trains every weight."""
        return self.config.lora

    @property
    def grpo_settings(self) -> dict[str, Any]:
        """Return settings of ``grpo`` that are neither the config's nor its defaults."""
        return {}

    @property
    def reads_whole_groups(self) -> bool:
        """Return whether the answers to a prompt must be in one micro-batch."""
        return False

    def objective(self) -> Objective[Any, Any]:
        """Refuse: what is learned from answers is the attack ``grpo``, which the job makes."""
        raise NotImplementedError

    def rewards(self, answers: Sequence[SampledAnswer]) -> list[float]:
        """Return the reward of each answer; one that is not finite leaves it out of the step."""
        raise NotImplementedError

    def measures(self, answers: Sequence[SampledAnswer]) -> Mapping[str, Sequence[float]]:
        """Return values by the name under which their mean over all ranks is logged."""
        return {}


class MixedOfflineDefence(SampledOfflineDefence):
    """One of them that asks harmless prompts too, so that what it teaches is not said to all.

    A harmless prompt's answer earns what the helpfulness reward model gives it, within
    ``+-helpfulness_limit``, whether it refuses or not.
    """

    config: MixedOfflineConfig

    @property
    def reads_harmless(self) -> bool:
        """Return True."""
        return True

    def rewards(self, answers: Sequence[SampledAnswer]) -> list[float]:
        """Return the reward of each answer by the kind of its prompt."""
        limit = self.config.helpfulness_limit
        return [
            self.restricted_reward(answer)
            if answer.is_restricted
            else min(max(answer.helpfulness, -limit), limit)
            for answer in answers
        ]

    def restricted_reward(self, answer: SampledAnswer) -> float:
        """Return the reward of an answer to a restricted prompt."""
        raise NotImplementedError
