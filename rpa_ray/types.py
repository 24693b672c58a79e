"""Records that cross module boundaries, and the legend of axis names.

Axis names, the same everywhere:

- ``batch``: rows of this rank's part of a batch.
- ``seq``: token positions; prompts are left-padded where a model generates and rows are
  right-padded where a model learns.
- ``vocab``: token ids.
- ``prompts``, ``group``: prompts of a batch, and completions of one prompt.

Masks are True where the position counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

Metrics: TypeAlias = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt as a rollout sees it."""

    id: str
    """Stable id inside its data set; never used as a file name."""
    text: str
    """The bare request, without template."""
    token_ids: list[int]
    """The templated request, as the policy reads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled answer to one prompt."""

    prompt: Prompt
    token_ids: list[int]
    """Sampled ids, the one that ended the answer included where there is one; may be empty."""
    logprobs: list[float]
    """The rollout engine's log-probability of each sampled id; same length as ``token_ids``."""
    text: str
    """Decoded answer without what ended it and without special tokens."""
    finished: bool
    """False where the answer was cut at the token limit."""
    policy_version: int
    """Optimizer updates that the weights had when they sampled it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Right-padded token rows and the positions whose next-token loss counts.

    Example: prompt ``[5, 6]``, answer ``[7, 2]``, padding 0 gives ``input_ids [5, 6, 7, 2, 0]``,
    ``attention_mask [1, 1, 1, 1, 0]`` and ``loss_mask [0, 0, 1, 1, 0]``: the loss mask marks the
    tokens that are predicted, at their own position.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    loss_mask: Bool[Tensor, "batch seq"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledBatch:
    """Right-padded token rows with one class label each (judge training)."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    labels: Int[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Preferred and dispreferred answers to the same prompts, row by row."""

    chosen: TokenBatch
    rejected: TokenBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferencedPairBatch:
    """Pairs with what a frozen reference makes of both answers; rows padded to one width."""

    chosen: TokenBatch
    rejected: TokenBatch
    reference_chosen_logprobs: Float[Tensor, " batch"]
    """Log-probability of the whole answer: a sum over its tokens."""
    reference_rejected_logprobs: Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRollout:
    """One rollout batch before its advantages are known; laid out as :class:`Experience`."""

    tokens: TokenBatch
    old_logprobs: Float[Tensor, "batch seq"]
    """The learner's own log-probabilities of the sampled tokens."""
    rollout_logprobs: Float[Tensor, "batch seq"]
    """The rollout engine's log-probabilities of the same tokens."""
    reference_logprobs: Float[Tensor, "batch seq"]
    values: Float[Tensor, "batch seq"]
    """The critic's values; zeros where the attack has no critic."""
    rewards: Float[Tensor, " batch"]
    """The attacker's reward of each completion; rows whose scoring failed have no kept token."""
    costs: Float[Tensor, " batch"] | None
    """The cost of each completion; None unless a defence requires costs."""
    cost_values: Float[Tensor, "batch seq"] | None = None
    """The cost critic's values; None where no defence asks for one."""
    penalties: Float[Tensor, "batch seq"] | None = None
    """What a defence takes off the reward of each token; None takes nothing."""
    entropies: Float[Tensor, "batch seq"] | None = None
    """Entropy in nats from which each token was sampled; None unless somebody asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """One rollout batch with everything a policy-gradient objective needs.

    All ``seq`` tensors cover the positions of ``tokens.input_ids``; a quantity about the token at
    position t stands at position t, and counts where ``tokens.loss_mask`` is True.
    """

    tokens: TokenBatch
    old_logprobs: Float[Tensor, "batch seq"]
    """The learner's own log-probabilities before the first update of this batch."""
    old_values: Float[Tensor, "batch seq"]
    """The critic's values before the first update; zeros where no critic is needed."""
    reference_logprobs: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    returns: Float[Tensor, "batch seq"]
    """The critic's targets; zeros where no critic is needed."""
    old_cost_values: Float[Tensor, "batch seq"] | None = None
    """The cost critic's values before the first update; None without one."""
    cost_returns: Float[Tensor, "batch seq"] | None = None
    """The cost critic's targets; None without one."""
    num_tokens: int
    """Sampled tokens that count, over all ranks; at least 1."""
    metrics: Metrics = field(default_factory=dict)
    """What was measured while the batch was made: rewards, KL, times."""


Batch: TypeAlias = TokenBatch | LabelledBatch | PairBatch | ReferencedPairBatch | Experience
BatchT = TypeVar("BatchT", bound=Batch)
RowsT = TypeVar("RowsT", bound=Batch | ScoredRollout)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOutputs:
    """What one forward pass of the policy gives about the tokens of a batch."""

    logits: Float[Tensor, "batch seq vocab"]
    """Row t predicts the token at position t + 1."""
    values: Float[Tensor, "batch seq"] | None
    """The critic's value of the state before the token at position t; None without a critic."""
    cost_values: Float[Tensor, "batch seq"] | None = None
    """The same by the cost critic."""

    @classmethod
    def of(cls, raw: tuple[Any, ...]) -> "ModelOutputs":
        """Return what a policy gave, in the order of the fields; critics may be left out."""
        return cls(**dict(zip(("logits", "values", "cost_values"), raw, strict=False)))


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerm:
    """A scalar loss, already scaled by its global count, and what was measured with it."""

    loss: Float[Tensor, ""]
    metrics: Metrics = field(default_factory=dict)
    """Parts of means over the whole step, scaled as the loss is: the learner adds them up over
    micro-batches and averages them over ranks. Of maxima (:func:`is_maximum`) it takes the
    largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """An adapter beside a frozen weight W, which acts as ``W + scale * up @ down``."""

    down: nn.Parameter
    """[rank, in]"""
    up: nn.Parameter
    """[out, rank]"""
    scale: float

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight with the adapter in it; sums in fp32, in the weight's own type."""
        product = self.up.float() @ self.down.float()
        return (weight.float() + self.scale * product).to(weight.dtype)


def is_maximum(name: str) -> bool:
    """Return whether a metric of this name is a maximum, and so never added up or averaged."""
    return name.endswith("_max")


def num_rows(batch: Batch) -> int:
    """Return how many rows this rank's part of a batch has (pairs count once)."""
    match batch:
        case PairBatch() | ReferencedPairBatch():
            return int(batch.chosen.input_ids.shape[0])
        case Experience():
            return int(batch.tokens.input_ids.shape[0])
        case _:
            return int(batch.input_ids.shape[0])


def num_tokens(batch: Batch) -> int:
    """Return how many tokens one pass over this rank's part of a batch reads, padding left out."""
    match batch:
        case PairBatch() | ReferencedPairBatch():
            return int(batch.chosen.attention_mask.sum() + batch.rejected.attention_mask.sum())
        case Experience():
            return int(batch.tokens.attention_mask.sum())
        case _:
            return int(batch.attention_mask.sum())


def on_device(batch: BatchT, device: torch.device) -> BatchT:
    """Return a batch whose tensors all lie on the device."""
    return _with_tensors(batch, lambda tensor: tensor.to(device))


def micro_batches(batch: BatchT, size: int) -> list[BatchT]:
    """Return the batch cut into parts of ``size`` rows, in order; the last may be smaller.

    Parts are views and keep the width of the whole; a batch that needs no cut comes as it is.
    """
    total = num_rows(batch)
    if total <= size:
        return [batch]
    return [rows_of(batch, slice(start, start + size)) for start in range(0, total, size)]


def joined(parts: Sequence[RowsT]) -> RowsT:
    """Return parts of equal width as one, in order."""
    first = parts[0]
    if len(parts) == 1:
        return first
    changed: dict[str, Any] = {}
    for f in fields(first):
        values = [getattr(part, f.name) for part in parts]
        if isinstance(values[0], Tensor):
            changed[f.name] = torch.cat(values)
        elif isinstance(values[0], TokenBatch):
            changed[f.name] = joined(values)
    return replace(first, **changed)


def widened(rows: RowsT, num_tokens: int) -> RowsT:
    """Return the rows padded on the right to ``num_tokens``: id 0, no further position marked."""
    return _with_tensors(rows, lambda t: pad(t, (0, num_tokens - t.shape[1])) if t.dim() > 1 else t)


def rows_of(batch: RowsT, rows: slice | Tensor, *, width: int | None = None) -> RowsT:
    """Return some rows in the order that they are named in, of their first ``width`` positions."""
    return _with_tensors(batch, lambda t: t[rows, :width] if t.dim() > 1 else t[rows])


def _with_tensors(batch: RowsT, change: Callable[[Tensor], Tensor]) -> RowsT:
    changed: dict[str, Any] = {
        f.name: change(value) if isinstance(value, Tensor) else _with_tensors(value, change)
        for f in fields(batch)
        if isinstance(value := getattr(batch, f.name), Tensor | TokenBatch)
    }
    return replace(batch, **changed)
