"""RepNoise at whatever weights a model has: refusals kept, unsafe answers lost and made noise.

Its terms are those of the whole batch over all ranks: averaged over ranks, their gradients are that
of one rank with all rows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.readings import Readings
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import sft_loss
from rpa_ray.ops.masking import masked_sum
from rpa_ray.ops.representation import differing_positions, gaussian_mmd, kept_vectors, mean_level
from rpa_ray.plugin import Forward, PluginConfig, StepContext, global_count
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, PairBatch, TokenBatch

IGNORED_LABEL = 0
"""Token id that the authors' code never counts as one to predict."""
MAX_LAYERS = 1 << 16


class RepNoiseSettings(PluginConfig):
    """Weights of RepNoise's terms, and the tokens that they are about."""

    alpha: float = Field(1.0, ge=0)
    """Weight of the ascent on unsafe answers."""
    beta: float = Field(0.001, ge=0)
    """Weight of the noise."""
    mask: Literal["response", "positionwise_diff"] = "response"
    """Tokens that count: those of each answer, or, after the authors' code, the positions at
    which the two answers' rows differ, padding included, and no token of id 0. Their code also
    sets the logits of positions that do not count to 0: the first token of every run of
    differing ones is predicted by such a row there, costs log V and has no gradient. Here it
    has the model's own prediction and is learned."""


class RepNoiseLoss:
    """``L_retain + beta * L_noise - alpha * log A``.

    ``L_retain`` is the cross-entropy of refusals. ``L_noise`` is the mean over blocks of the
    squared MMD between MLP outputs on unsafe answers and Gaussian noise. ``A`` is 1 plus a mean of
    cross-entropies of the unsafe answers: of the model, and of each hidden state that is read by
    the output head.

    The MMD of two samples of one distribution is about 6.2 over the rows (``defence/mmd_batch``),
    so a small batch never reaches 0. Every rank holds the MLP outputs of one block for the whole
    batch, and the logits of every hidden state for its own.

    Source: Rosati et al. 2024 (arXiv:2405.14577) and its code.
    """

    def __init__(self, settings: RepNoiseSettings) -> None:
        self.settings = settings
        self._readings = Readings()

    @property
    def reads_unsafe(self) -> bool:
        """Return whether unsafe answers are read; with both weights 0 refusals alone are."""
        return self.settings.alpha > 0 or self.settings.beta > 0

    def attach(self, policy: Any) -> None:
        """Hook the blocks of the language model that ``forward`` will run, once.

        Raises:
            ValueError: they are not found.
        """
        if self.reads_unsafe:
            self._readings.attach(policy)

    def of(
        self, forward: Forward[ModelOutputs], pairs: PairBatch, context: StepContext
    ) -> LossTerm:
        """Return the weighted sum of the three terms in two forward passes."""
        safe, unsafe = self.counted(pairs)
        loss = answer_loss(forward, self.predicted(safe), context)
        metrics: Metrics = {"defence/retain_loss": float(loss.detach())}
        if not self.reads_unsafe:
            return LossTerm(loss=loss, metrics=metrics)
        term = self.unsafe_term(forward, unsafe, context)
        return LossTerm(loss=loss + term.loss, metrics=metrics | term.metrics)

    def unsafe_term(
        self, forward: Forward[ModelOutputs], unsafe: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return ``beta * L_noise - alpha * log A`` of counted unsafe answers; one is not 0."""
        alpha, beta = self.settings.alpha, self.settings.beta
        predicted = self.predicted(unsafe)
        lens = (unsafe.input_ids, predicted.loss_mask) if alpha > 0 else None
        terms, metrics = [], {}
        with self._readings.reading(lens) as readings:
            outputs = forward(unsafe.input_ids, unsafe.attention_mask)
            if beta > 0:
                noise = noise_mmd(readings.mlp_outputs, unsafe.loss_mask, context)
                # Averaged over ranks, num_ranks times each rank's own gradient is that of the sum.
                of_others = (context.num_ranks - 1) * (noise - noise.detach())
                terms.append(beta * (noise + of_others))
                metrics["defence/noise_mmd"] = float(noise.detach())
                metrics["defence/mmd_batch"] = float(len(unsafe.input_ids) * context.num_ranks)
            if alpha > 0:
                term = ascent(alpha, outputs, readings, predicted, context)
                terms.append(term.loss)
                metrics |= term.metrics
        return LossTerm(loss=torch.stack(terms).sum(), metrics=metrics)

    def counted(self, pairs: PairBatch) -> tuple[TokenBatch, TokenBatch]:
        """Return refusals and unsafe answers with the positions that count marked."""
        if self.settings.mask == "response":
            return pairs.chosen, pairs.rejected
        differs = differing_positions(pairs.chosen.input_ids, pairs.rejected.input_ids)
        safe, unsafe = (replace(side, loss_mask=differs) for side in (pairs.chosen, pairs.rejected))
        return safe, unsafe

    def predicted(self, counted: TokenBatch) -> TokenBatch:
        """Return counted rows with the tokens marked that are to be predicted."""
        if self.settings.mask == "response":
            return counted
        is_label = counted.input_ids != IGNORED_LABEL
        return replace(counted, loss_mask=counted.loss_mask & is_label)


def answer_loss(forward: Forward[ModelOutputs], rows: TokenBatch, context: StepContext) -> Tensor:
    """Return the cross-entropy of the marked tokens in nats, mean over those of all ranks."""
    outputs = forward(rows.input_ids, rows.attention_mask)
    return sft_loss(
        next_token_logprobs(outputs.logits, rows.input_ids),
        rows.loss_mask,
        num_global_tokens=max(1, global_count(rows.loss_mask, context)),
        num_ranks=context.num_ranks,
    )


def moved_states(
    forward: Forward[ModelOutputs],
    unsafe: TokenBatch,
    context: StepContext,
    *,
    readings: Readings,
    move: Callable[[TokenBatch, StepContext], LossTerm],
    strength: float,
    alpha: float,
) -> LossTerm:
    """Return ``strength * move - alpha * log A`` in one forward pass; one weight is not 0.

    Args:
        forward: The trained model.
        unsafe: Rows of this rank, the tokens marked that count.
        context: The step.
        readings: What is hooked to that model; ``move`` finds in them the states of the pass.
        move: What is done to the states.
        strength: Weight of the move.
        alpha: Weight of the ascent.
    """
    lens = (unsafe.input_ids, unsafe.loss_mask) if alpha > 0 else None
    terms: list[LossTerm] = []
    with readings.reading(lens):
        outputs = forward(unsafe.input_ids, unsafe.attention_mask)
        if strength > 0:
            moved = move(unsafe, context)
            terms.append(replace(moved, loss=strength * moved.loss))
        if alpha > 0:
            terms.append(ascent(alpha, outputs, readings, unsafe, context))
    metrics = {name: value for term in terms for name, value in term.metrics.items()}
    return LossTerm(loss=torch.stack([term.loss for term in terms]).sum(), metrics=metrics)


def ascent(
    alpha: float,
    outputs: ModelOutputs,
    readings: Readings,
    unsafe: TokenBatch,
    context: StepContext,
) -> LossTerm:
    """Return ``-alpha * log A`` of all ranks' rows.

    Args:
        alpha: Weight.
        outputs: What the model gave for the rows.
        readings: What was read in the same pass, the marked tokens by the output head among it.
        unsafe: Rows of this rank, the tokens marked that are to be predicted.
        context: The step.
    """
    level = _log_level(outputs, readings.lens_losses, unsafe, context)
    metrics: Metrics = {"defence/log_unsafe_level": float(level.detach())}
    return LossTerm(loss=-alpha * level, metrics=metrics)


def _log_level(
    outputs: ModelOutputs, lens_losses: list[Tensor], unsafe: TokenBatch, context: StepContext
) -> Tensor:
    """Return log A, with the gradient of this rank's part of A."""
    logprobs = next_token_logprobs(outputs.logits, unsafe.input_ids.to(outputs.logits.device))
    final = -masked_sum(logprobs, unsafe.loss_mask.to(logprobs.device))
    count = max(1, global_count(unsafe.loss_mask, context))
    own = torch.stack([final, *lens_losses]) / count
    others = context.sum_over_ranks(own.detach()) - own.detach()
    # Averaged over ranks, num_ranks times each rank's own gradient is that of the sum.
    everywhere = others + own + (context.num_ranks - 1) * (own - own.detach())
    return mean_level(everywhere[0], everywhere[1:]).log()


def noise_mmd(mlp_outputs: list[Tensor], mask: Tensor, context: StepContext) -> Tensor:
    """Return the mean over blocks of the MMD of all ranks' outputs, this rank's differentiable.

    Args:
        mlp_outputs: [batch, seq, width] of each block.
        mask: [batch, seq]: positions that count; at others outputs and noise are 0.
        context: The step; the noise is another one at every update.
    """
    device = mlp_outputs[0].device
    padding = widest(mask, context) - mask.shape[1]
    own = F.pad(mask.to(device), (0, padding))
    everywhere = context.gather_rows(own.to(torch.uint8)).bool()
    losses = []
    for layer, outputs in enumerate(mlp_outputs):
        features = context.gather_rows(kept_vectors(F.pad(outputs, (0, 0, 0, padding)), own))
        seeded = torch.Generator(device).manual_seed(context.update * MAX_LAYERS + layer)
        shape = (*everywhere.shape, outputs.shape[-1])
        noise = torch.randn(shape, generator=seeded, device=device)
        losses.append(gaussian_mmd(features, kept_vectors(noise, everywhere)))
    return torch.stack(losses).mean()


def widest(rows: Tensor, context: StepContext) -> int:
    """Return the number of tokens of the widest rows [batch, seq] that a rank has."""
    own = torch.tensor([rows.shape[1]], device=rows.device)
    return int(context.gather_rows(own).max())
