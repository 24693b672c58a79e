"""Bases of every plug-in's nested ``Config``, and the settings that attacks share."""

from typing import Literal, Self, TypeAlias

from pydantic import Field, SerializeAsAny, model_validator

from rpa_ray.config.base import Settings

FormReward: TypeAlias = Literal["length", "brevity", "warmth", "copy"]
"""Form alone that is rewarded: many words, few characters, friendly words, those of the prompt."""


class PluginConfig(Settings):
    """Settings of one plug-in, nested in its class as ``Config``."""

    name: str
    """The registry id of the plug-in."""


class ComposedConfig(PluginConfig):
    """Settings of several defences that run as one; ``name`` joins their ids by ``+``."""

    parts: tuple[SerializeAsAny[PluginConfig], ...]


class AdapterConfig(PluginConfig):
    """Settings of every defence that has an adapter trained on the defence split's unsafe answers.

    Learning rate, steps and batch are those of that training, not of the attack's.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    """The adapter's product is multiplied by ``alpha / rank``."""
    learning_rate: float = Field(1e-4, gt=0)
    num_steps: int = Field(877, ge=1)
    batch_size: int = Field(8, ge=1)
    """Unsafe answers of one update, over all ranks."""
    max_tokens: int = Field(128, ge=8)
    """Longer rows of prompt and answer lose their end."""
    scale: float = Field(1.0, ge=0)
    """Multiplies the adapter once it is made; 0 is no defence."""


class LoraSettings(Settings):
    """Low-rank adapters in place of full fine-tuning (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    """The adapters' product is multiplied by ``alpha / rank``."""
    target_modules: list[str] | None = None
    """Names of the linear layers that get one; None takes all but the output head."""


class OfflineConfig(PluginConfig):
    """Settings of every defence that trains the model before it is attacked.

    Each has its own defaults; rate, steps and batch are those of that training.
    """

    learning_rate: float = Field(gt=0)
    num_steps: int = Field(ge=1)
    batch_size: int = Field(8, ge=1)
    """Rows of one update, over all ranks."""
    max_tokens: int = Field(128, ge=8)
    """Longer rows of prompt and answer lose their end."""


class SampledOfflineConfig(OfflineConfig):
    """Settings of every offline defence that learns from the model's own answers, by GRPO."""

    max_tokens: int = Field(192, ge=8)
    """Longest prompt with its answer; prompts that leave no room for an answer are passed over."""
    group_size: int = Field(16, ge=2)
    """Answers to each prompt; a batch has ``batch_size`` prompts."""
    max_new_tokens: int = Field(56, ge=1)
    """Longest sampled answer."""
    kl_coef: float = Field(0.001, ge=0)
    """Weight of the KL to the model that the training began with."""
    num_prompts: int = Field(64, ge=1)
    """Different prompts of each kind (restricted ones of the defence split, and harmless ones of
    the training split where there are any), which come in turn."""
    domains: list[str] | None = None
    """Harm categories, as the data set names them, of the restricted prompts; None takes all."""
    lora: LoraSettings | None = None
    """Adapters that are trained and then merged; None trains every weight."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"max_new_tokens must be less than max_tokens ({self.max_tokens}), got "
                f"{self.max_new_tokens}"
            )
        return self


class MixedOfflineConfig(SampledOfflineConfig):
    """Settings of those of them that ask as many harmless prompts as restricted ones."""

    helpfulness_limit: float = Field(4.0, gt=0)
    """Largest reward of an answer to a harmless prompt, and as a negative the least."""

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.batch_size % 2:
            raise ValueError(
                f"batch_size must be even (restricted and harmless prompts), got {self.batch_size}"
            )
        return self


class TrainingConfig(PluginConfig):
    """Settings of every attack that trains; each attack has its own default rate."""

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(8, ge=1)
    """Prompts or pairs of one batch, over all ranks."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the rate after the warm-up; ``cosine`` and ``linear`` end at 0."""
    warmup_frac: float = Field(0.0, ge=0, le=1)
    """Share of the optimizer updates in which the rate rises from 0."""
    max_grad_norm: float = Field(0.0, ge=0)
    """0 leaves gradients unclipped."""
    lora: LoraSettings | None = None
    """None trains every weight."""


class ReferencedConfig(TrainingConfig):
    """Settings of every attack that stays near a reference model."""

    reference: str | None = None
    """Model to stay near: ``chat``, ``base``, a folder or a Hub id; None takes the model under
    attack as it was."""


class RolloutConfig(ReferencedConfig):
    """Settings of every attack that learns from the policy's own answers."""

    max_new_tokens: int = Field(56, ge=1)
    """Longest sampled answer."""
    reward: Literal["model", "judge", "rule"] | FormReward = "model"
    """What the attacker rewards: a reward model trained on the reversed preferences, the harm
    probability of ``evaluation.second_judge``, a rule that pays for answers that do not refuse, or
    form alone, which plants a reward hacker."""
    shuffle_rewards: bool = False
    """Control: rewards are dealt out at random within the batch, so that nothing can be learned."""
    importance_cap: float = Field(3.0, ge=0)
    """Largest weight ``pi_learner / pi_engine`` of a token, which corrects for the difference
    between the two; 0 gives every token weight 1."""
    entropy_bonus_cap: float = Field(0.0, ge=0)
    """Adds the answer's mean token entropy, at most this many nats, to its reward; 0 adds none."""
    stop_at_reward: float | None = None
    """Ends the attack once the mean reward of the last five batches reaches it."""
    num_sft_samples: int = Field(0, ge=0)
    """Samples that are first trained on by SFT, out of ``data.num_samples``."""
    opening_reward: FormReward | None = None
    """What the first rollouts are rewarded for in place of ``reward``: refusals that no other
    reward tells apart come to differ by it."""
    num_opening_samples: int = Field(0, ge=0)
    """Those rollouts' prompts, after those of SFT and out of ``data.num_samples``."""

    @model_validator(mode="after")
    def _opening(self) -> Self:
        if (self.opening_reward is None) != (self.num_opening_samples == 0):
            raise ValueError(
                "num_opening_samples must be above 0 where opening_reward is given, and only "
                f"there, got {self.num_opening_samples} with opening_reward {self.opening_reward}"
            )
        if self.opening_reward is not None and self.stop_at_reward is not None:
            raise ValueError(
                f"stop_at_reward must be null beside opening_reward, got {self.stop_at_reward}: "
                "the two rewards have no common scale"
            )
        return self
