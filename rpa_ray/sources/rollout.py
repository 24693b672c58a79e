"""Batches from the policy itself: prompts -> rollout engine -> scores -> advantages."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from rpa_ray.actors.errors import WorkerError
from rpa_ray.data.collate import collate_completions
from rpa_ray.learner.invariants import require_served
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, SamplingFailed
from rpa_ray.ops.logprobs import entropy, next_token_logprobs, rows_at_once
from rpa_ray.plugin import Attack, Need
from rpa_ray.scoring.harm_score import harm_score
from rpa_ray.types import (
    Completion,
    Experience,
    Metrics,
    ModelOutputs,
    Prompt,
    ScoredRollout,
    TokenBatch,
    joined,
    on_device,
    rows_of,
    widened,
)


class Generate(Protocol):
    """Samples one completion of each prompt with the weights of the last push."""

    def __call__(self, prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        """Return completions in the order of the prompts."""
        ...


Score = Callable[[Sequence[tuple[str, str]]], Callable[[], list[float]]]
"""Starts scoring (prompt, answer) pairs; the returned call waits for the scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutParts:
    """The workers a rollout batch passes through."""

    generate: Generate
    reward: Score
    judge: Score
    """Harm probability of each completion, always watched."""
    reference: Callable[[Tensor, Tensor], ModelOutputs]
    """The frozen model to stay near."""
    push: Callable[[], Metrics] = dict
    """Has the engines serve the weights as they are; called before each batch is sampled."""
    cost: Score | None = None
    """Cost of each completion; None takes the judge's harm probability."""


class RolloutSource:
    """Makes one experience batch a step; every prompt is used exactly once.

    A prompt is answered ``group_size`` times, and its answers stay together on one rank.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        attack: Attack,
        learner: Learner,
        parts: RolloutParts,
        batch_size: int,
        pad_token_id: int,
        vocab_size: int,
        seed: int,
        observe: Callable[[int, Sequence[Completion], dict[str, list[float]]], None],
        watch: Callable[[], Mapping[str, Sequence[float]]] = dict,
        group_size: int = 1,
        shuffle_rewards: bool = False,
        cost_limit: float = 0.5,
        first_step: int = 0,
        served_dtype: str | None = None,
    ) -> None:
        """Take what a batch is made from.

        ``observe`` sees every batch once it is scored; ``watch`` then gives values of this rank by
        name, whose means over all ranks are logged. ``first_step`` is the number of rollout batches
        that came from another source: seeds go on from there. ``served_dtype`` is the type of the
        weights that engine and learner share, which says how far they may be apart; None where a
        defence has them compute with others.
        """
        self._prompts = list(prompts)
        self._attack = attack
        self._learner = learner
        self._parts = parts
        self._batch_size = batch_size
        self._pad_token_id = pad_token_id
        self._vocab_size = vocab_size
        self._seed = seed
        self._observe = observe
        self._watch = watch
        self._group_size = group_size
        self._shuffle_rewards = shuffle_rewards
        self._cost_limit = cost_limit
        self._first_step = first_step
        self._served_dtype = served_dtype
        needs = attack.needs(attack.config) | learner.defence.needs
        self._needs_costs = Need.COSTS in needs
        self._needs_entropies = Need.ENTROPIES in needs

    @property
    def num_rows(self) -> int:
        """Return how many prompts are asked in all."""
        return len(self._prompts)

    def next_batch(self, step: int) -> tuple[Experience, Metrics]:
        """Return this rank's part of rollout batch ``step``, and what was measured on the way.

        Raises:
            BrokenInvariant: the engine's probabilities are not the learner's.
            SamplingFailed: the rollout engine's or the learner's probabilities are not finite.
        """
        pushed = self._parts.push()
        started = time.perf_counter()
        drawn, start = self._first_step + step, step * self._batch_size
        part = self._learner.ranks.part(self._prompts[start : start + self._batch_size])
        asked = [prompt for prompt in part for _ in range(self._group_size)]
        completions = self._parts.generate(asked, seed=self._seed * 1_000_003 + drawn)
        sampled = time.perf_counter()
        pairs = [(c.prompt.text, c.text) for c in completions]
        pending_rewards, pending_harm = self._parts.reward(pairs), self._parts.judge(pairs)
        pending_costs = self._parts.cost(pairs) if self._parts.cost is not None else None
        device = self._learner.ranks.device
        tokens, rollout_logprobs = collate_completions(completions, self._pad_token_id)
        tokens, rollout_logprobs = on_device(tokens, device), rollout_logprobs.to(device)
        rollout = self._unscored(tokens, rollout_logprobs)
        gap = _gap_metrics(
            rollout_logprobs - rollout.old_logprobs, tokens.loss_mask, self._learner.ranks
        )
        if self._served_dtype is not None:
            require_served(gap["sync/logprob_gap"], self._served_dtype)
        measured = time.perf_counter()
        rewards, harm = pending_rewards(), pending_harm()
        costs = pending_costs() if pending_costs is not None else harm
        scored = time.perf_counter()
        self._observe(step, completions, {"reward": rewards, "judge": harm})
        failed = self._failed(rewards, costs)
        if self._shuffle_rewards:
            chance = random.Random(f"{self._seed}/{drawn}")  # noqa: S311 - drawn again on resume
            rewards = chance.sample(rewards, len(rewards))
            failed = self._failed(rewards, costs)
        rollout = replace(
            rollout,
            tokens=replace(tokens, loss_mask=tokens.loss_mask & ~failed[:, None]),
            rewards=_without_failed(rewards, failed),
            costs=_without_failed(costs, failed) if self._needs_costs else None,
        )
        defence, context = self._learner.defence, self._learner.context()
        self._attack.observe(rollout, context)
        rollout, planned = defence.plan_rollout(rollout, context)
        experience = self._attack.experience(rollout, defence.shape_advantages, context)
        ranks = self._learner.ranks
        measured_here = {
            "rollout/length_tokens": float(tokens.loss_mask.sum()) / len(completions),
            "rollout/finished_frac": sum(c.finished for c in completions) / len(completions),
            "time/rollout_s": sampled - started,
            "time/experience_s": measured - sampled,
            "time/score_s": scored - measured,
        }
        metrics = experience.metrics | gap | pushed | ranks.mean(measured_here)
        metrics["rollout/num_tokens"] = float(ranks.sum(tokens.loss_mask.sum().double()))
        metrics |= {name: _finite_mean(of, ranks) for name, of in self._watch().items()}
        # What a defence says of a reward of its own stands in place of what the scorers gave.
        return experience, metrics | self._score_metrics(pairs, rewards, harm, failed) | planned

    def _score_metrics(
        self,
        pairs: Sequence[tuple[str, str]],
        rewards: Sequence[float],
        harm: Sequence[float],
        failed: Tensor,
    ) -> Metrics:
        """Return what scorers said of the batch, over all ranks; a collective."""
        ranks = self._learner.ranks
        within = [float(p <= self._cost_limit) if math.isfinite(p) else p for p in harm]
        return {
            "reward/mean": _finite_mean(rewards, ranks),
            "reward/num_failed": float(ranks.sum(failed.sum().double())),
            "judge/p_harm": _finite_mean(harm, ranks),
            "judge/within_limit_frac": _finite_mean(within, ranks),
            "judge/harm_score": _finite_mean(_harm_scores(pairs, harm), ranks),
        }

    def _failed(self, rewards: Sequence[float], costs: Sequence[float]) -> Tensor:
        """Return which completions [batch] have no finite score; they are left out of the step.

        Raises:
            WorkerError: The scorers gave no finite score to any completion of any rank.
        """
        needed = [rewards, costs] if self._needs_costs else [rewards]
        scores = torch.tensor(needed, device=self._learner.ranks.device)
        failed = ~torch.isfinite(scores).all(dim=0)
        if self._learner.ranks.sum((~failed).sum().double()).item() == 0:
            raise WorkerError(
                "the scorers must give at least one completion of a batch a finite score, got "
                f"{len(rewards)} that are not on this rank. Check the reward model's weights."
            )
        return failed

    def _unscored(self, tokens: TokenBatch, rollout_logprobs: Tensor) -> ScoredRollout:
        """Return the completions with what the learner and the reference make of them."""
        own_width = tokens.input_ids.shape[1]
        widths = self._learner.ranks.gather([own_width])
        size = rows_at_once(max(width for (width,) in widths), self._vocab_size)
        cutter = replace(self._learner.micro_batches, max_rows=size)
        order = cutter.order(tokens)
        with torch.no_grad(), self._learner.defence.around_rollout():
            parts = [self._read(part) for part in cutter.cut(rows_of(tokens, order))]
        read = rows_of(joined([widened(part, own_width) for part in parts]), order.argsort())
        rollout = replace(read, tokens=tokens, rollout_logprobs=rollout_logprobs)
        self._check_finite(rollout_logprobs, "rollout engine")
        self._check_finite(rollout.old_logprobs, "learner")
        return rollout

    def _read(self, tokens: TokenBatch) -> ScoredRollout:
        """Return what the models make of some rows, without what the engine says of them."""
        outputs: ModelOutputs = self._learner.forward(tokens.input_ids, tokens.attention_mask)
        reference = self._parts.reference(tokens.input_ids, tokens.attention_mask)
        old = next_token_logprobs(outputs.logits, tokens.input_ids)
        entropies = None
        if self._needs_entropies:
            entropies = pad(entropy(outputs.logits[:, :-1]), (1, 0))
        return ScoredRollout(
            tokens=tokens,
            old_logprobs=old,
            rollout_logprobs=torch.zeros_like(old),
            reference_logprobs=next_token_logprobs(reference.logits, tokens.input_ids),
            values=outputs.values if outputs.values is not None else torch.zeros_like(old),
            rewards=torch.zeros(len(old), device=old.device),
            costs=None,
            cost_values=outputs.cost_values,
            entropies=entropies,
        )

    def _check_finite(self, logprobs: Tensor, whose: str) -> None:
        broken = (~torch.isfinite(logprobs)).any().double()
        if self._learner.ranks.sum(broken).item() > 0:
            raise SamplingFailed(f"log-probabilities of the {whose} are not finite")


def _gap_metrics(gap: Tensor, mask: Tensor, ranks: Ranks) -> Metrics:
    """Return mean and largest |engine - learner| log-probability over the tokens of all ranks."""
    kept = gap.abs().masked_fill(~mask, 0.0)
    total, count = ranks.sum(torch.stack([kept.sum(), mask.sum()]).double()).tolist()
    return {"sync/logprob_gap": total / max(count, 1.0)} | ranks.mean(
        {"sync/logprob_gap_max": float(kept.max())}
    )


def _without_failed(scores: Sequence[float], failed: Tensor) -> Tensor:
    return torch.tensor(scores, device=failed.device).masked_fill(failed, 0.0)


def _harm_scores(pairs: Sequence[tuple[str, str]], harm: Sequence[float]) -> list[float]:
    return [
        harm_score(*pair, p_harm) if math.isfinite(p_harm) else math.nan
        for pair, p_harm in zip(pairs, harm, strict=True)
    ]


def _finite_mean(values: Sequence[float], ranks: Ranks) -> float:
    """Return the mean of the finite values of all ranks."""
    finite = [value for value in values if math.isfinite(value)]
    sums = torch.tensor([sum(finite), len(finite)], dtype=torch.float64)
    total, count = ranks.sum(sums).tolist()
    return float(total / max(count, 1.0))
