"""TokenBuncher: restricted prompts' answers lose the entropy that reinforcement learning needs."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rpa_ray.ops.masking import sequence_means
from rpa_ray.ops.noise import noised_nll
from rpa_ray.plugin import (
    Forward,
    Need,
    Objective,
    OnlineDefence,
    SampledAnswer,
    SampledOfflineConfig,
    SampledOfflineDefence,
    StepContext,
    global_mean,
)
from rpa_ray.types import Experience, LossTerm, Metrics, ModelOutputs, ScoredRollout


class TokenBuncher(SampledOfflineDefence):
    """GRPO towards answers of little entropy, and noise on the tokens that are not sampled.

    An answer earns minus its mean token entropy, over the whole vocabulary as the learner reads it.
    After ``warmup_steps`` every even step learns, in place of that, the answers whose advantage is
    not negative, by cross-entropy whose targets have noise on all other classes (the Token Noiser):
    an attacker who raises the entropy again finds no order among them.

    As in the source, restricted prompts alone are asked: nothing holds harmless answers but the KL,
    which is taken off the rewards. Watch ``helpfulness`` and ``valid``. Ours are the sizes of
    answers and of the set of prompts, and noise that follows from an answer's tokens and the
    update, so that ranks and micro-batches play no part in it.

    An attacker who knows of it pays for entropy: ``attack.entropy_bonus_cap``.

    Source: arXiv:2508.20697 and its code.
    """

    class Config(SampledOfflineConfig):
        name: str = "token_buncher"
        strength: float = Field(1.0, ge=0)
        """Weight of the entropy in the reward and of the noiser's loss; 0 is the start model."""
        warmup_steps: int = Field(25, ge=0)
        """Steps before the noiser's first."""
        eps: float = Field(0.1, ge=0, le=1)
        """What the weight of a sampled token falls short of 1; 0 is plain cross-entropy."""
        noiser_weight: Literal["eps", "eps2"] = "eps2"
        """Weight of all other tokens together: ``eps``, or its square as in the released code."""
        learning_rate: float = Field(1e-6, gt=0)
        """Adam's rate; the embedded 1M models need 1e-4."""
        num_steps: int = Field(200, ge=1)
        batch_size: int = Field(32, ge=1)
        """Prompts of one update, over all ranks."""
        group_size: int = Field(4, ge=2)

    config: Config

    @property
    def grpo_settings(self) -> dict[str, Any]:
        """Return where the KL enters; at strength 0 nothing moves that it would hold."""
        return {"kl_in": "reward"} | ({} if self.config.strength else {"kl_coef": 0.0})

    def hooks(self) -> OnlineDefence:
        """Return what rewards answers and what takes the noiser's steps."""
        return _Bunching(self.config)

    def rewards(self, answers: Sequence[SampledAnswer]) -> list[float]:
        """Return 0 for each answer: no scorer knows its entropy, and the hooks do."""
        return [0.0] * len(answers)


class _Bunching(OnlineDefence):
    """Rewards by entropies, and cross-entropy with noise in the place of every other update."""

    def __init__(self, config: TokenBuncher.Config) -> None:
        super().__init__(OnlineDefence.Config())
        self._settings, self._noiser = config, _TokenNoiser(config)

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for entropies."""
        return frozenset({Need.ENTROPIES} if self._settings.strength else ())

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return the rollout with minus its mean entropies as rewards."""
        if rollout.entropies is None:
            return rollout, {}
        mask = rollout.tokens.loss_mask
        entropies = sequence_means(rollout.entropies, mask)
        rewards = -self._settings.strength * entropies
        counted = mask.any(dim=-1)
        metrics = {
            "reward/mean": global_mean(rewards[counted], context)[0],
            "defence/answer_entropy": global_mean(entropies[counted], context)[0],
        }
        return replace(rollout, rewards=rewards, entropies=None), metrics

    def plan_step(self, objective: Any, batch: Any, context: StepContext) -> Any:
        """Return the noiser for an even step after the warm-up."""
        step = context.attack_update + 1
        is_noisy = step > self._settings.warmup_steps and step % 2 == 0
        return (self._noiser if is_noisy and self._settings.strength else objective), batch


class _TokenNoiser(Objective[Experience, ModelOutputs]):
    """Cross-entropy with noise on the answers that are no worse than their group's mean."""

    def __init__(self, config: TokenBuncher.Config) -> None:
        self._config = config

    def num_terms(self, batch: Experience) -> Tensor:
        """Return the number of tokens of those answers."""
        return _learned(batch).sum()

    def loss(
        self, forward: Forward[ModelOutputs], batch: Experience, context: StepContext
    ) -> LossTerm:
        """Return the mean over their tokens, times the strength."""
        ids, mask = batch.tokens.input_ids, _learned(batch)
        logits = forward(ids, batch.tokens.attention_mask).logits
        losses = []
        for row, kept in enumerate(mask):
            predicted = kept.nonzero().squeeze(1)
            seed = _seed(ids[row][batch.tokens.attention_mask[row]], context.update)
            # Computed again in the backward pass: noise of one answer at most is held.
            losses.append(
                checkpoint(
                    partial(self._answer_loss, seed=seed),
                    logits[row, predicted - 1],
                    ids[row, predicted],
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
        total = torch.stack(losses).sum() / context.num_terms * context.num_ranks
        loss = self._config.strength * total
        return LossTerm(loss=loss, metrics={"train/loss": float(loss.detach())})

    def _answer_loss(self, logits: Tensor, token_ids: Tensor, *, seed: int) -> Tensor:
        eps = self._config.eps
        return noised_nll(
            logits,
            token_ids,
            eps=eps,
            noise_weight=eps if self._config.noiser_weight == "eps" else eps**2,
            generator=torch.Generator(logits.device).manual_seed(seed),
        ).sum()


def _learned(batch: Experience) -> Tensor:
    """Return the tokens [batch, seq] of answers whose advantage is not negative."""
    return batch.tokens.loss_mask & (batch.advantages >= 0)


def _seed(token_ids: Tensor, update: int) -> int:
    """Return a number that follows from a row's tokens and the update alone."""
    return zlib.crc32(token_ids.cpu().numpy().tobytes(), update)
