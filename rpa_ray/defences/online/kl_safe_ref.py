"""A safety-trained model to stay near, in place of the attack's own reference or beside it."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from rpa_ray.ops.kl import kl_k1
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.masking import sequence_sums, weights_by_position
from rpa_ray.plugin import (
    NamedModel,
    Need,
    OnlineDefence,
    PluginConfig,
    RefusalTuned,
    StepContext,
    global_mean,
)
from rpa_ray.types import Metrics, ScoredRollout


class KLSafeRef(OnlineDefence):
    """Keeps the attack near a frozen, safety-trained model ``pi_s``.

    Modes:

    - ``replace``: ``pi_s`` is the attack's reference, with the attack's own coefficient; DPO's
      log-probabilities of the reference then come from it. A reference that the attack names
      itself is not used.
    - ``add``: ``beta w_t (log pi_theta - log pi_s)`` is taken off the reward of each token, beside
      the attack's own KL; only for attacks on the policy's own answers.

    ``pi_s`` must read and write the tokens of the model under attack. It has to be held in memory
    beside the model as it was, and reads each batch once.

    Source: policy divergence as a constraint, arXiv:2409.12914; the safe reference is their
    suggestion. Early tokens: Qi et al. 2024 (arXiv:2406.05946).
    """

    needs_attack: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE})
    passes: ClassVar[float] = 1.3

    class Config(PluginConfig):
        name: str = "kl_safe_ref"
        model: str | None = None
        """``pi_s``, named as ``model.path`` is; None makes it: the model under attack after SFT on
        the refusals of the defence split."""
        num_steps: int = Field(100, ge=1)
        """Updates of that SFT."""
        learning_rate: float = Field(2e-4, gt=0)
        """Rate of that SFT, for the embedded 1M models; a cosine after a short warm-up."""
        batch_size: int = Field(16, ge=1)
        """Refusals of one update of that SFT, over all ranks."""
        max_tokens: int = Field(128, ge=8)
        """Longer rows of prompt and refusal lose their end in that SFT."""
        mode: Literal["replace", "add"] = "replace"
        beta: float = Field(0.1, ge=0)
        """Weight of the penalty of ``add``, in units of reward per nat; 0 is no defence there."""
        profile: Literal["flat", "early_tokens"] = "flat"
        """Weights ``w_t`` of ``add``: 1 for every token, or 5 for the first of an answer, 20 for
        the second to the fifth and 1 after, where it is decided whether an answer refuses."""

    config: Config

    @property
    def needs_of_attack(self) -> frozenset[Need]:
        """Return the need for a reference to replace, or for answers to penalise."""
        if self.config.mode == "add":
            return self.needs_attack | {Need.ROLLOUTS}
        return self.needs_attack

    @property
    def reference(self) -> NamedModel | None:
        """Return ``pi_s`` where it replaces the attack's own reference."""
        return self._safe_model if self.config.mode == "replace" else None

    @property
    def compared_model(self) -> NamedModel | None:
        """Return ``pi_s`` where its penalty stands beside the attack's own."""
        return self._safe_model if self._adds else None

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return the rollout with the penalty on each token, in ``add``."""
        if not self._adds:
            return rollout, {}
        tokens, mask = rollout.tokens, rollout.tokens.loss_mask
        safe = next_token_logprobs(
            context.frozen(tokens.input_ids, tokens.attention_mask).logits, tokens.input_ids
        )
        log_ratios = kl_k1(rollout.old_logprobs, safe).masked_fill(~mask, 0.0)
        penalties = self.config.beta * self._weights(mask) * log_ratios
        counted = mask.any(dim=-1)
        metrics = {
            "defence/safe_kl": global_mean(sequence_sums(log_ratios, mask)[counted], context)[0],
            "defence/penalty": global_mean(sequence_sums(penalties, mask)[counted], context)[0],
        }
        if rollout.penalties is not None:
            penalties = penalties + rollout.penalties
        return replace(rollout, penalties=penalties), metrics

    @property
    def _adds(self) -> bool:
        return self.config.mode == "add" and self.config.beta > 0

    @property
    def _safe_model(self) -> NamedModel:
        if self.config.model is not None:
            return self.config.model
        return RefusalTuned(
            num_steps=self.config.num_steps,
            learning_rate=self.config.learning_rate,
            batch_size=self.config.batch_size,
            max_tokens=self.config.max_tokens,
        )

    def _weights(self, mask: Tensor) -> Tensor:
        if self.config.profile == "flat":
            return mask.float()
        return weights_by_position(mask, first=5.0, second_to_fifth=20.0, later=1.0)
