"""RepNoise during the attack: refusals are kept, what unsafe text leads to is made noise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rpa_ray.defences.readings import Readings
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.ops.losses import sft_loss
from rpa_ray.ops.masking import masked_sum
from rpa_ray.ops.representation import differing_positions, gaussian_mmd, kept_vectors, mean_level
from rpa_ray.plugin import Forward, Need, OnlineDefence, PluginConfig, StepContext, global_count
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, PairBatch, TokenBatch

IGNORED_LABEL = 0
"""Token id that the authors' code never counts as one to predict."""
MAX_LAYERS = 1 << 16


class RepNoiseOnline(OnlineDefence):
    """``L = L_attack + strength * (L_retain + beta * L_noise - alpha * log A)``.

    ``L_retain`` is the cross-entropy of refusals. ``L_noise`` is the mean over blocks of the
    squared MMD between MLP outputs on unsafe answers and Gaussian noise. ``A`` is 1 plus a mean of
    cross-entropies of the unsafe answers: of the model, and of each hidden state that is read by
    the output head. With alpha and beta 0 only the refusals are left and unsafe answers are not
    read; with strength 0 nothing is.

    Both terms are those of the whole batch: the MMD gathers the outputs of all ranks, and the noise
    is the same however they are split. The MMD of two samples of one distribution is about 6.2 over
    ``batch_size`` (``defence/mmd_batch``), so a small batch never reaches 0. Every rank holds the
    MLP outputs of one block for the whole batch, and the logits of every hidden state for its own.

    Source: Rosati et al. 2024 (arXiv:2405.14577) and its code; as a term beside an attack's loss in
    the code of arXiv:2409.12914. Its weight there is not known: ``strength`` is ours.
    """

    passes: ClassVar[float] = 4.1

    class Config(PluginConfig):
        name: str = "repnoise_online"
        strength: float = Field(1.0, ge=0)
        """Weight of the whole term beside the attack's loss; 0 is no defence."""
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
        batch_size: int = Field(8, ge=1)
        """Prompts of one update, each with both answers, over all ranks."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._readings: Readings | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """Return the need for both answers, unless nothing is done."""
        return frozenset({Need.CONTRAST_BATCH} if self.config.strength > 0 else ())

    @property
    def safe_batch_size(self) -> int:
        """Return the number of prompts."""
        return self.config.batch_size

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the policy's blocks, where they are to be read.

        Raises:
            ValueError: they are not found.
        """
        config = self.config
        if config.strength > 0 and (config.alpha > 0 or config.beta > 0):
            self._readings = Readings(model.policy)

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the weighted sum of the three terms."""
        if self.config.strength == 0:
            return None
        safe, unsafe = self._counted(context.next_contrast_batch())
        loss, metrics = self._retain(forward, safe, context)
        if self._readings is not None:
            lens = (unsafe.input_ids, self._predicted(unsafe)) if self.config.alpha > 0 else None
            with self._readings.reading(lens) as readings:
                outputs = forward(unsafe.input_ids, unsafe.attention_mask)
                if self.config.beta > 0:
                    noise = _noise(readings.mlp_outputs, unsafe.loss_mask, context)
                    loss = loss + self.config.beta * context.num_ranks * noise
                    metrics["defence/noise_mmd"] = float(noise.detach())
                    metrics["defence/mmd_batch"] = float(self.config.batch_size)
                if self.config.alpha > 0:
                    level = self._log_level(outputs, readings.lens_losses, unsafe, context)
                    loss = loss - self.config.alpha * level
                    metrics["defence/log_unsafe_level"] = float(level.detach())
        return LossTerm(loss=self.config.strength * loss, metrics=metrics)

    def _retain(
        self, forward: Forward[ModelOutputs], safe: TokenBatch, context: StepContext
    ) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy of the refusals, mean over their tokens on all ranks."""
        predicted = self._predicted(safe)
        outputs = forward(safe.input_ids, safe.attention_mask)
        loss = sft_loss(
            next_token_logprobs(outputs.logits, safe.input_ids),
            predicted,
            num_global_tokens=max(1, global_count(predicted, context)),
            num_ranks=context.num_ranks,
        )
        return loss, {"defence/retain_loss": float(loss.detach())}

    def _log_level(
        self,
        outputs: ModelOutputs,
        lens_losses: list[Tensor],
        unsafe: TokenBatch,
        context: StepContext,
    ) -> Tensor:
        """Return log A of all ranks, with the gradient of this rank's part of A."""
        predicted = self._predicted(unsafe)
        logprobs = next_token_logprobs(outputs.logits, unsafe.input_ids.to(outputs.logits.device))
        final = -masked_sum(logprobs, predicted.to(logprobs.device))
        count = max(1, global_count(predicted, context))
        own = torch.stack([final, *lens_losses]) / count
        others = context.sum_over_ranks(own.detach()) - own.detach()
        # Averaged over ranks, num_ranks times each rank's own gradient is that of the sum.
        everywhere = others + own + (context.num_ranks - 1) * (own - own.detach())
        return mean_level(everywhere[0], everywhere[1:]).log()

    def _counted(self, pairs: PairBatch) -> tuple[TokenBatch, TokenBatch]:
        """Return refusals and unsafe answers with the positions that count marked."""
        if self.config.mask == "response":
            return pairs.chosen, pairs.rejected
        differs = differing_positions(pairs.chosen.input_ids, pairs.rejected.input_ids)
        safe, unsafe = (replace(side, loss_mask=differs) for side in (pairs.chosen, pairs.rejected))
        return safe, unsafe

    def _predicted(self, batch: TokenBatch) -> Tensor:
        """Return which tokens are to be predicted."""
        if self.config.mask == "response":
            return batch.loss_mask
        return batch.loss_mask & (batch.input_ids != IGNORED_LABEL)


def _noise(mlp_outputs: list[Tensor], mask: Tensor, context: StepContext) -> Tensor:
    """Return the mean over blocks of the MMD of all ranks' outputs, this rank's differentiable."""
    device = mlp_outputs[0].device
    widths = context.gather_rows(torch.tensor([mask.shape[1]], device=device))
    padding = int(widths.max()) - mask.shape[1]
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
