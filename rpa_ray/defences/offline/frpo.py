"""FRPO: reinforcement learning for the worst policy near the one that is released."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import kl_loss
from rpa_ray.ops.masking import sequence_means
from rpa_ray.ops.robust import robust_group_losses
from rpa_ray.plugin import (
    Forward,
    MixedOfflineConfig,
    MixedOfflineDefence,
    Objective,
    OnlineDefence,
    SampledAnswer,
    StepContext,
)
from rpa_ray.types import Experience, LossTerm, ModelOutputs

CLIP_RANGE = 0.2
"""Of a token's ratio, as in GRPO."""


class FRPO(MixedOfflineDefence):
    """Fine-tuning robust policy optimisation: ``max_pi min_q E_q[r]`` over q in a KL ball of pi.

    The inner minimum is ``-lam * log E_pi[exp(-r / lam)]``. Of the answers to a prompt, with
    ``A_i = r_i - mean r`` and ``rho_i`` the mean clipped ratio of answer i's tokens, it is learned
    by ``max(lam, 1) * (log mean_i rho_i exp(-A_i / lam) - mean_i rho_i)``; the jackknife takes the
    bias of a logarithm of a mean off. ``kl_coef`` times the KL to the model that the training began
    with is added (k3, mean over the tokens of each answer, then over answers).

    An answer to a restricted prompt earns 1 less its harm probability by the judge that training
    may use; one to a harmless prompt earns its helpfulness within ``+-helpfulness_limit``. The
    source has StrongREJECT and a moderation model, and a helpfulness model of 8B.

    The source's grids are ``lam`` 0.1 to 5 and ``kl_coef`` 2e-4 to 0.1; the defaults of both and
    the limit are ours. It trains adapters of rank 64 with weight decay 0.1; by default it is all
    weights here, without decay.

    Source: arXiv:2602.08813 and its code.
    """

    class Config(MixedOfflineConfig):
        name: str = "frpo"
        strength: float = Field(1.0, ge=0)
        """Weight of the robust loss against the KL; 0 is the start model."""
        lam: float = Field(1.0, gt=0)
        """Towards 0 a group's worst answer alone counts, towards infinity all alike, as in GRPO; in
        units of the reward."""
        jackknife: bool = True
        """Take off the bias of the logarithm of a group's mean."""
        helpfulness_limit: float = Field(1.0, gt=0)
        """As large as the reward for safety, since advantages are not scaled."""
        baseline: bool = True
        """Subtract the mean ratio of the group: without, equal rewards lower all probabilities."""
        learning_rate: float = Field(1e-5, gt=0)
        """Adam's rate; the embedded 1M models need 1e-4."""
        num_steps: int = Field(500, ge=1)
        batch_size: int = Field(16, ge=1)
        """Prompts of one update, over all ranks."""
        group_size: int = Field(8, ge=2)

    config: Config

    @property
    def grpo_settings(self) -> dict[str, Any]:
        """Return plain advantages, without deviation or importance weights."""
        return {"scale_rewards": False, "importance_cap": 0.0}

    @property
    def reads_whole_groups(self) -> bool:
        """Return True: a loss is one group's."""
        return True

    def hooks(self) -> OnlineDefence:
        """Return what puts the robust loss in the place of GRPO's."""
        return _Robust(self.config)

    def restricted_reward(self, answer: SampledAnswer) -> float:
        """Return how safe the answer is, 0 to 1."""
        return 1.0 - answer.p_harm

    def measures(self, answers: Sequence[SampledAnswer]) -> Mapping[str, Sequence[float]]:
        """Return harm and helpfulness of the answers of this rank."""
        harmless = [answer for answer in answers if not answer.is_restricted]
        return {
            "defence/restricted_p_harm": [a.p_harm for a in answers if a.is_restricted],
            "defence/harmless_helpfulness": [a.helpfulness for a in harmless],
            "defence/harmless_refusal_frac": [float(a.refuses) for a in harmless],
        }


class _Robust(OnlineDefence):
    """Has every update follow the robust loss."""

    def __init__(self, config: FRPO.Config) -> None:
        super().__init__(OnlineDefence.Config())
        self._objective = _RobustLoss(config)

    def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
        """Return the robust loss for the same rollout."""
        return self._objective, batch


class _RobustLoss(Objective[Experience, ModelOutputs]):
    """Mean over the groups of their robust losses, with the KL."""

    def __init__(self, config: FRPO.Config) -> None:
        self._config = config

    def num_terms(self, batch: Experience) -> Tensor:
        """Return the number of groups in which two answers were scored."""
        return self._taught(batch).sum()

    def loss(
        self, forward: Forward[ModelOutputs], batch: Experience, context: StepContext
    ) -> LossTerm:
        """Return the weighted loss of whole groups."""
        config, tokens = self._config, batch.tokens
        mask = tokens.loss_mask
        outputs = forward(tokens.input_ids, tokens.attention_mask)
        logprobs = next_token_logprobs(outputs.logits, tokens.input_ids)
        groups = robust_group_losses(
            logprobs,
            batch.old_logprobs,
            sequence_means(batch.advantages, mask),
            mask,
            group_size=config.group_size,
            lam=config.lam,
            clip_range=CLIP_RANGE,
            jackknife=config.jackknife,
            baseline=config.baseline,
        )
        robust = groups.sum() / context.num_terms * context.num_ranks
        loss = config.strength * robust
        metrics = {"policy/loss": float(robust.detach())}
        if config.strength and config.kl_coef:
            divergence = kl_loss(
                logprobs,
                batch.reference_logprobs,
                self._weights(batch),
                num_global_terms=context.num_terms,
                num_ranks=context.num_ranks,
            )
            loss = loss + config.kl_coef * divergence
            metrics["policy/kl_loss"] = float(divergence.detach())
        return LossTerm(loss=loss, metrics=metrics)

    def _taught(self, batch: Experience) -> Tensor:
        """Return which groups [groups] can be compared."""
        scored = batch.tokens.loss_mask.any(dim=-1).view(-1, self._config.group_size)
        return scored.sum(dim=1) > 1

    def _weights(self, batch: Experience) -> Tensor:
        """Return what each token [batch, seq] counts in the mean of means of its group."""
        mask = batch.tokens.loss_mask
        scored = mask.any(dim=-1).view(-1, self._config.group_size)
        num = (scored.sum(dim=1) * self._taught(batch)).repeat_interleave(self._config.group_size)
        by_answer = torch.where(num > 0, 1.0 / num.clamp(min=1), 0.0)
        return mask * (by_answer / mask.sum(dim=-1).clamp(min=1))[:, None]
