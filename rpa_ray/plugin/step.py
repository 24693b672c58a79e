"""What the learner tells a plug-in: what it may ask for, the step it is in, the shards it owns."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, TypeVar

from torch import Tensor

from rpa_ray.types import ModelOutputs, PairBatch, TokenBatch

OutputT_co = TypeVar("OutputT_co", covariant=True)
MasterEdit: TypeAlias = Callable[[Iterable[tuple[str, Tensor]]], None]
"""Edits owned fp32 master weights in place, given with their names."""


class Need(StrEnum):
    """What a plug-in asks of the experiment; only what somebody needs is started."""

    TARGETS = "targets"
    """Answers to imitate: the preferred ones of the attack's pairs."""
    PAIRS = "pairs"
    """The attack's preference pairs, with the reference's log-probability of both answers."""
    ANSWER_POOL = "answer_pool"
    """Many answers of the untouched model to each prompt of the attack, rewarded and judged."""
    ROLLOUTS = "rollouts"
    """Completions sampled by the rollout engine with the current weights."""
    REWARDS = "rewards"
    """The attacker's reward model on every completion."""
    COSTS = "costs"
    """A cost on every completion: the judge's harm probability, or what a cost model says."""
    COST_MODEL = "cost_model"
    """A cost model trained on clean preferences; with it costs are its scores."""
    COST_VALUES = "cost_values"
    """A second value head, for costs."""
    VALUES = "values"
    """A value head on the policy's trunk."""
    REFERENCE = "reference"
    """A frozen model to stay near; as a rule the one under attack as it was."""
    ENTROPIES = "entropies"
    """The entropy from which each token of a completion was sampled."""
    SAFE_BATCH = "safe_batch"
    """Batches of (restricted prompt, refusal) from the defence split."""
    RECOVERY_PREFIX = "recovery_prefix"
    """Half of the refusals in safe batches follow the beginning of an unsafe answer."""
    CONTRAST_BATCH = "contrast_batch"
    """Batches of a refusal and an unsafe answer to the same prompts from the defence split."""
    HARMLESS_BATCH = "harmless_batch"
    """Batches of harmless prompts, each with the preferred answer, from the training split of the
    helpfulness set; none of its test split, with which is evaluated. The embedded helpfulness
    scorer has learned from the same dialogues."""
    ORIGINAL = "original"
    """``context.frozen`` as the model under attack as it was, and no other."""
    SECURITY_VECTOR = "security_vector"
    """An adapter of the model under attack that answers as the attack wants it to."""
    COMPARED_WEIGHTS = "compared_weights"
    """The folder of ``compared_model``, to read its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalTuned:
    """The model under attack after SFT on the defence split's refusals; made before the run."""

    num_steps: int
    learning_rate: float
    batch_size: int
    max_tokens: int
    """Longer rows of prompt and refusal lose their end."""


NamedModel: TypeAlias = str | RefusalTuned
"""A model that a defence asks for: named as ``model.path`` is, or made from the one attacked."""


DEFENCE_BATCHES = frozenset({Need.SAFE_BATCH, Need.CONTRAST_BATCH, Need.HARMLESS_BATCH})
"""Needs met by batches of ``OnlineDefence.safe_batch_size`` rows."""


class Forward(Protocol[OutputT_co]):
    """One differentiable forward pass of the trained model."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> OutputT_co:
        """Return what the model gives for right-padded rows [batch, seq]."""
        ...


def missing(what: str) -> Callable[..., Any]:
    """Return what stands in the place of something that a plug-in asks for without a right to."""

    def ask(*args: Any) -> Any:
        raise AssertionError(f"a plug-in asked for {what}, which is not there")

    return ask


NO_SAFE_BATCH = missing("a safe batch without Need.SAFE_BATCH")
NO_CONTRAST_BATCH = missing("a contrast batch without Need.CONTRAST_BATCH")
NO_HARMLESS_BATCH = missing("a harmless batch without Need.HARMLESS_BATCH")
NO_ROWS = missing("the rows of all ranks where there are none")
NO_FORWARD = missing("a frozen model")
NO_GRADIENTS = missing("gradients of its own outside compute_gradients")
NO_TRIAL = missing("weights on trial outside compute_gradients")
NO_PART = missing("the owned part of a parameter without an engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContext:
    """What a plug-in may know about the optimizer step it takes part in."""

    update: int
    """Optimizer updates done before this one, those of a defence's own among them."""
    num_ranks: int
    sum_over_ranks: Callable[[Tensor], Tensor]
    """All-reduced sum; every rank must call it equally often."""
    sum_over_shards: Callable[[Tensor], Tensor]
    """All-reduced sum of what ranks computed from the shards they own; where each owns all (ZeRO 0)
    nothing is summed. Every rank must call it equally often."""
    next_safe_batch: Callable[[], TokenBatch]
    """The next rows of the defence split, this rank's part; position is saved with the run."""
    next_contrast_batch: Callable[[], PairBatch] = NO_CONTRAST_BATCH
    """The next pairs of the defence split, refusal ``chosen`` and unsafe answer ``rejected``: this
    rank's part; position is saved with the run."""
    next_harmless_batch: Callable[[], TokenBatch] = NO_HARMLESS_BATCH
    """The next harmless prompts with their answers, which are marked: this rank's part; position is
    saved with the run."""
    gather_rows: Callable[[Tensor], Tensor] = NO_ROWS
    """Returns the rows of all ranks in the order of the global batch, from equally shaped parts;
    only this rank's own rows are differentiable. Every rank must call it equally often."""
    learning_rate: float = 0.0
    """The optimizer's rate of this update; an update of a defence's own has the rate of the
    attack's that comes next."""
    attack_update: int = 0
    """Updates of the attack done before this one, those of the defence itself not counted."""
    num_planned_updates: int = 0
    """Updates that the attack's samples are worth, those of the defence itself not counted."""
    frozen: Forward[ModelOutputs] = NO_FORWARD
    """The model that the defence compares with (``compared_model``), without gradients."""
    gradients_of: Callable[[Tensor], dict[str, Tensor]] = NO_GRADIENTS
    """Returns the gradient of a loss alone, averaged over ranks, of the shards this rank owns: by
    name, fp32, shaped as ``Shard.gradient``. Only in ``compute_gradients`` and before its passes,
    where no gradient waits; nothing is left behind. Every rank must call it equally often."""
    trial_weights: Callable[[], AbstractContextManager[Callable[[MasterEdit], None]]] = NO_TRIAL
    """Returns a context in which the weights may be moved, with what moves them: it has the owned
    masters edited and rounds them to the weights that the model computes with, which forward passes
    and ``gradients_of`` then see. At its end all are what they were, bit for bit. It holds a copy
    of the owned masters. Only in ``compute_gradients`` and before its passes, where no gradient
    waits. Every rank must enter it and move equally often."""
    own_part: Callable[[str, Tensor], Tensor | None] = NO_PART
    """Returns what this rank owns of a trained parameter's whole values, given by name: shaped as
    ``Shard.master``, None where it owns none."""
    num_terms: int = 0
    """Terms of the objective's loss in the whole step, over micro-batches and ranks; at least 1.
    0 before the step's batch is settled: in ``plan_step`` and ``experience``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The part of one parameter that this rank owns, between backward and the optimizer step."""

    name: str
    master: Tensor
    """fp32 master weights, flat or in the parameter's shape."""
    gradient: Tensor
    """Gradient averaged over ranks, before clipping, same shape as ``master``; edit in place."""
