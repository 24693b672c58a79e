"""The learner step: an objective, constrained by a defence, once through the engine."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rpa_ray.learner.engine import Engine
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plugin import Objective, OnlineDefence, StepContext
from rpa_ray.types import Batch, Metrics, ModelOutputs, TokenBatch

MAX_SKIPPED_UPDATES = 3
"""Consecutive updates with a non-finite loss after which a run has failed."""


class SamplingFailed(RuntimeError):
    """The policy can no longer be trained or sampled; the run ends with this step as its result."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def no_safe_batch() -> TokenBatch:
    """Stand where no plug-in asked for a safe batch."""
    raise AssertionError("a plug-in drew a safe batch without requiring Need.SAFE_BATCH")


class Learner:
    """Trains one model: attack and defence around one DeepSpeed engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        objective: Objective[Any, Any],
        defence: OnlineDefence,
        ranks: Ranks,
        next_safe_batch: Callable[[], TokenBatch] = no_safe_batch,
    ) -> None:
        self.engine = engine
        self.objective = objective
        self.defence = defence
        self.ranks = ranks
        self._next_safe_batch = next_safe_batch
        self._num_skipped_in_a_row = 0

    def step(self, batch: Batch) -> Metrics:
        """Train on one batch for the objective's number of epochs; return mean metrics.

        Raises:
            SamplingFailed: the loss stayed non-finite for several updates in a row.
        """
        updates = [self._update(batch) for _ in range(self.objective.num_epochs)]
        keys = dict.fromkeys(key for metrics in updates for key in metrics)
        return {k: _mean([m[k] for m in updates if k in m]) for k in keys}

    def context(self) -> StepContext:
        """Return what plug-ins may know about the coming update."""
        return StepContext(
            update=self.engine.num_updates,
            num_ranks=self.ranks.size,
            sum_over_ranks=self.ranks.sum,
            next_safe_batch=self._next_safe_batch,
        )

    def _update(self, batch: Batch) -> Metrics:
        context = self.context()
        objective, batch = self.defence.plan_step(self.objective, batch, context)
        finite = True

        def gradient_pass() -> Metrics:
            nonlocal finite
            term = objective.loss(self.forward, batch, context)
            extra = self.defence.extra_loss(self.forward, context)
            loss = term.loss if extra is None else term.loss + extra.loss
            finite = self._is_finite_everywhere(loss)
            if finite:
                self.engine.backward(loss)
            return term.metrics | (extra.metrics if extra is not None else {})

        with self.defence.around_forward():
            metrics = self.defence.compute_gradients(gradient_pass)
        if not finite:
            return metrics | self._skip()
        self._num_skipped_in_a_row = 0
        metrics |= self.defence.on_gradients(self.engine.shards(), context)
        learning_rate = self.engine.learning_rate()
        norm = self.engine.step()
        self.defence.after_step(context)
        return metrics | {
            "optim/grad_norm": norm,
            "optim/learning_rate": learning_rate,
            "optim/skipped": 0.0,
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Run the trained model; a policy's outputs come as a record."""
        device = self.engine.device
        return as_outputs(self.engine(input_ids.to(device), attention_mask.to(device)))

    def _is_finite_everywhere(self, loss: Tensor) -> bool:
        broken = (~torch.isfinite(loss.detach())).to(torch.float64)
        return bool(self.ranks.sum(broken).item() == 0)

    def _skip(self) -> Metrics:
        self._num_skipped_in_a_row += 1
        if self._num_skipped_in_a_row >= MAX_SKIPPED_UPDATES:
            raise SamplingFailed(
                f"the loss was not finite in {MAX_SKIPPED_UPDATES} updates in a row"
            )
        return {"optim/skipped": 1.0}


def as_outputs(raw: Any) -> Any:
    """Return a policy's (logits, values) as a record, a classifier's scores unchanged."""
    if isinstance(raw, tuple):
        return ModelOutputs(logits=raw[0], values=raw[1])
    return raw


def _mean(values: list[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else float("nan")
