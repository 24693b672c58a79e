"""The learner step: an objective, constrained by a defence, once through the engine."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from rpa_ray.learner.engine import Engine
from rpa_ray.learner.invariants import require_gradient
from rpa_ray.learner.micro_batches import MicroBatches
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plugin import Forward, Objective, OnlineDefence, StepContext
from rpa_ray.plugin.step import NO_CONTRAST_BATCH, NO_FORWARD, NO_HARMLESS_BATCH, NO_SAFE_BATCH
from rpa_ray.types import (
    Batch,
    BatchT,
    Experience,
    Metrics,
    ModelOutputs,
    PairBatch,
    TokenBatch,
    is_maximum,
    num_tokens,
    rows_of,
)

MAX_SKIPPED_UPDATES = 3
"""Consecutive updates with a non-finite loss after which a run has failed."""
ATTACK, DEFENCE = "attack", "defence"
"""Whose updates are counted: one's good updates hide nothing of the other's."""


class SamplingFailed(RuntimeError):
    """The policy can no longer be trained or sampled; the run ends with this step as its result."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LearnerState(TypedDict):
    """What a resumed learner needs beside its engine."""

    objective: dict[str, float]
    defence: dict[str, Tensor | float]
    num_skipped_in_a_row: dict[str, int]


class Learner:
    """Trains one model: attack and defence around one DeepSpeed engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        objective: Objective[Any, Any],
        defence: OnlineDefence,
        ranks: Ranks,
        next_safe_batch: Callable[[], TokenBatch] = NO_SAFE_BATCH,
        next_contrast_batch: Callable[[], PairBatch] = NO_CONTRAST_BATCH,
        next_harmless_batch: Callable[[], TokenBatch] = NO_HARMLESS_BATCH,
        frozen: Forward[ModelOutputs] = NO_FORWARD,
    ) -> None:
        self.engine = engine
        self.objective = objective
        self.defence = defence
        self.ranks = ranks
        self._next_safe_batch = next_safe_batch
        self._next_contrast_batch = next_contrast_batch
        self._next_harmless_batch = next_harmless_batch
        self._frozen = frozen
        self._num_skipped_in_a_row = {ATTACK: 0, DEFENCE: 0}
        self.micro_batches = MicroBatches(
            ranks=ranks,
            max_rows=engine.settings.micro_batch_size,
            max_tokens=engine.settings.micro_batch_tokens,
        )

    def step(self, batch: Batch) -> Metrics:
        """Train on this rank's part of a batch for the objective's number of epochs.

        Every rank must call it with as many rows. The metrics that come back are those of the whole
        batch, means over epochs, the same on every rank.

        Raises:
            SamplingFailed: the loss stayed non-finite for several updates in a row, or was so once
                in an objective that skips no update.
            BrokenInvariant: the first update has nothing to learn from its batch.
        """
        batch = self._ordered(batch)
        num_epochs = self.objective.num_epochs(batch)
        updates = [self._defended_update(batch) for _ in range(num_epochs)]
        keys = dict.fromkeys(key for metrics in updates for key in metrics)
        read = self.ranks.sum(torch.tensor(num_tokens(batch), dtype=torch.float64))
        return {k: _over_epochs(k, [m[k] for m in updates if k in m]) for k in keys} | {
            "train/num_tokens": num_epochs * float(read)
        }

    def state_dict(self) -> LearnerState:
        """Return the state of attack and defence; the engine saves its own."""
        return {
            "objective": self.objective.state_dict(),
            "defence": self.defence.state_dict(),
            "num_skipped_in_a_row": dict(self._num_skipped_in_a_row),
        }

    def load_state_dict(self, state: LearnerState) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.objective.load_state_dict(state["objective"])
        self.defence.load_state_dict(state["defence"])
        self._num_skipped_in_a_row = dict(state["num_skipped_in_a_row"])

    def context(self) -> StepContext:
        """Return what plug-ins may know about the coming update."""
        return StepContext(
            update=self.engine.num_updates,
            attack_update=self.engine.num_scheduled_updates,
            num_ranks=self.ranks.size,
            sum_over_ranks=self.ranks.sum,
            sum_over_shards=self.ranks.sum if self.engine.zero_stage > 0 else lambda own: own,
            next_safe_batch=self._next_safe_batch,
            next_contrast_batch=self._next_contrast_batch,
            next_harmless_batch=self._next_harmless_batch,
            gather_rows=self.ranks.gather_rows,
            learning_rate=self.engine.learning_rate(),
            num_planned_updates=self.engine.settings.optimizer.num_steps,
            frozen=self._frozen,
            own_part=self.engine.own_part,
        )

    def _defended_update(self, batch: Batch) -> Metrics:
        """Make the defence's own updates and one of the attack; return the metrics of all ranks."""
        metrics: Metrics = {}
        for objective, own_batch in self.defence.own_updates(self.context()):
            own = self.ranks.mean(self._update(objective, self._ordered(own_batch), is_own=True))
            metrics |= {key: value for key, value in own.items() if key.startswith("defence/")}
        objective, planned = self.defence.plan_step(self.objective, batch, self.context())
        return metrics | self.ranks.mean(self._update(objective, planned))

    def _update(
        self, objective: Objective[Any, Any], batch: Batch, *, is_own: bool = False
    ) -> Metrics:
        """Make one update; the schedule of the attack does not count the defence's own."""
        whose = DEFENCE if is_own else ATTACK
        parts = self.micro_batches.cut(batch)
        num_broken = torch.zeros((), dtype=torch.float64, device=self.engine.device)

        def backward(loss: Tensor) -> None:
            # Counted on the device and over ranks once an update: what a broken loss adds to the
            # gradients is thrown away.
            nonlocal num_broken
            num_broken = num_broken + (~torch.isfinite(loss.detach())).to(num_broken)
            self.engine.backward(loss)

        def gradients_of(loss: Tensor) -> dict[str, Tensor]:
            backward(loss)
            shards = self.engine.shards()
            found = {shard.name: shard.gradient.detach().float().clone() for shard in shards}
            self.engine.discard_gradients()
            return found

        num_terms = self._num_terms(objective, batch)
        context = replace(
            self.context(),
            num_terms=num_terms,
            gradients_of=gradients_of,
            trial_weights=self.engine.trial_weights,
        )

        def gradient_pass() -> Metrics:
            metrics: Metrics = {}
            for part in parts:
                term = objective.loss(self.forward, part, context)
                is_last = part is parts[-1]
                extra = self.defence.extra_loss(self.forward, context) if is_last else None
                backward(term.loss if extra is None else term.loss + extra.loss)
                metrics = _added(metrics, term.metrics)
                metrics |= extra.metrics if extra is not None else {}
            return metrics

        with self.defence.around_forward():
            metrics = self.defence.compute_gradients(gradient_pass, self.forward, context)
        if self.ranks.sum(num_broken).item() > 0:
            return metrics | self._skip(whose)
        self._num_skipped_in_a_row[whose] = 0
        if not is_own and self.engine.num_scheduled_updates == 0:
            self._require_gradient(objective, batch)
        metrics |= self.defence.on_gradients(self.engine.shards(), context)
        learning_rate = self.engine.learning_rate()
        norm = self.engine.step(
            lambda masters: self.defence.after_step(masters, context), is_scheduled=not is_own
        )
        return metrics | {
            "optim/grad_norm": norm,
            "optim/learning_rate": learning_rate,
            "optim/skipped": 0.0,
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Run the trained model; a policy's outputs come as a record."""
        device = self.engine.device
        return as_outputs(self.engine(input_ids.to(device), attention_mask.to(device)))

    def _ordered(self, batch: BatchT) -> BatchT:
        if self.micro_batches.max_tokens is None:
            return batch
        return rows_of(batch, self.micro_batches.order(batch))

    def _require_gradient(self, objective: Objective[Any, Any], batch: Batch) -> None:
        """Refuse a gradient of nothing where the batch has something to learn."""
        has_terms = self.ranks.sum(objective.num_terms(batch).to(torch.float64)).item() > 0
        require_gradient(
            self.engine.shards(),
            self.context().sum_over_shards,
            dtype="bfloat16" if self.engine.settings.bf16 else "float32",
            # Equal rewards, or PPO's guard against large ratios, make rollouts that teach nothing.
            may_be_zero=isinstance(batch, Experience)
            or objective.may_begin_at_rest
            or not has_terms,
        )

    def _num_terms(self, objective: Objective[Any, Any], batch: Batch) -> int:
        """Return the terms of the whole step's loss, at least 1: without any it is 0, not NaN."""
        total = self.ranks.sum(objective.num_terms(batch).to(torch.float64))
        return max(1, int(total.item()))

    def _skip(self, whose: str) -> Metrics:
        """Throw an update away, or give up after too many in a row of the attack or the defence."""
        self.engine.discard_gradients()
        if not self.objective.skips_broken_updates:
            raise SamplingFailed("the loss was not finite")
        self._num_skipped_in_a_row[whose] += 1
        if self._num_skipped_in_a_row[whose] >= MAX_SKIPPED_UPDATES:
            raise SamplingFailed(
                f"the loss was not finite in {MAX_SKIPPED_UPDATES} updates of the {whose} in a row"
            )
        return {"optim/skipped": 1.0}


def as_outputs(raw: Any) -> Any:
    """Return what a policy gives as a record, a classifier's scores unchanged."""
    if isinstance(raw, tuple):
        return ModelOutputs.of(raw)
    return raw


def run_without_adapters(engine: Engine, input_ids: Tensor, mask: Tensor) -> ModelOutputs:
    """Return what the model gives that adapters are trained beside, as a frozen copy would.

    No critic's values are among it. Every rank must call it: under ZeRO 3 the weights are shared.
    """
    ids, mask = input_ids.to(engine.device), mask.to(engine.device)
    with torch.no_grad(), engine.module.adapters_off():  # type: ignore[operator]
        outputs: ModelOutputs = as_outputs(engine(ids, mask))
    return replace(outputs, values=None, cost_values=None)


def _added(sums: Metrics, metrics: Metrics) -> Metrics:
    """Return the metrics of one more micro-batch added to those before, of maxima the larger."""
    out = dict(sums)
    for key, value in metrics.items():
        if is_maximum(key):
            out[key] = max(value, sums.get(key, value))
        else:
            out[key] = value + sums.get(key, 0.0)
    return out


def _over_epochs(key: str, values: list[float]) -> float:
    """Return the mean (of maxima the largest) of the finite values, NaN where none is."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return float("nan")
    return max(finite) if is_maximum(key) else sum(finite) / len(finite)
