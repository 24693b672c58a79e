"""Vaccine: each update is made where a bounded change of the attention outputs hurts it most."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rpa_ray.defences.blocks import ATTENTION_NAMES, modules_of_blocks
from rpa_ray.plugin import (
    BatchT,
    Forward,
    Need,
    Objective,
    OnlineDefence,
    OutputT,
    PluginConfig,
    StepContext,
)
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, micro_batches, num_rows

EPS = 1e-7
"""Added to the norm that a gradient is divided by, as in the authors' code."""


class Vaccine(OnlineDefence):
    """``min_theta max_{|e| <= rho} L_attack(theta, e)``, the inner maximum to first order.

    ``e`` is added to the output of every attention module, at every position. It is ``rho g / |g|``
    with ``g`` the gradient of the attack's own loss with respect to those outputs, and constant
    in the second pass, whose gradients alone train the model. Rollouts, their log-probabilities and
    evaluation see the model as it is: in PPO and GRPO the old policy is the unperturbed one, and a
    large ``e`` drives the ratio away from 1, into the clip or PPO's guard.

    With ``norm: local`` every micro-batch of a rank has a perturbation of its own, so smaller ones
    and more ranks make another step: the norm of all that is added in an update grows as the root
    of their number. With ``norm: global`` the step is the same however its rows are split. What
    tells the strengths of two runs apart is ``defence/vaccine_relative_rms``, the RMS of ``e`` by
    that of the attention outputs that it is added to, over the same positions.

    An update takes two forward and two backward passes, with ``norm: global`` and several
    micro-batches on a rank nearly three, and the memory of twice the attention outputs of one
    micro-batch (``e``, and the block inputs that it belongs to). Reentrant gradient checkpointing
    fails in the first pass: its graph does not know ``e``.

    Source: Huang et al. 2024 (arXiv:2402.01109), eq. 3 and algorithm 1, there before the attack;
    used on the attack, with rho 100, by arXiv:2409.12914. The authors' code has one process and a
    norm for its whole batch.
    """

    passes: ClassVar[float] = 1.7

    class Config(PluginConfig):
        name: str = "vaccine"
        rho: float = Field(100.0, ge=0)
        """Size of the perturbation; 0 is no defence. To keep the size of an element when the model,
        the batch or the length changes, scale it as sqrt(layers * rows * tokens * width)."""
        budget: Literal["total", "per_token"] = "total"
        """What ``rho`` bounds: ``total`` the L2 norm of one perturbation over layers, rows, tokens
        and channels; ``per_token`` the RMS over channels of each token in each layer, which does
        not depend on the batch. Tokens without gradient (padding) are left alone in both."""
        norm: Literal["local", "global"] = "local"
        """Whether a rank's micro-batch has a perturbation and a norm of its own, or all rows of an
        update, over micro-batches and ranks, share one. ``per_token`` perturbs alike in both."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._model: nn.Module | None = None
        self._outputs: AttentionOutputs | None = None

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        """Hook every attention module, unless rho is 0.

        Raises:
            ValueError: the model has no attention module under a known name.
        """
        if self.config.rho > 0:
            self._model = model
            self._outputs = AttentionOutputs(model)

    def plan_step(
        self, objective: Objective[BatchT, OutputT], batch: BatchT, context: StepContext
    ) -> tuple[Objective[BatchT, OutputT], BatchT]:
        """Return the objective with its loss under the perturbation."""
        if self.config.rho == 0:
            return objective, batch
        assert self._model is not None and self._outputs is not None
        perturbed = Perturbed(
            objective,
            config=self.config,
            model=self._model,
            outputs=self._outputs,
            batch=batch,
        )
        return perturbed, batch

    def around_forward(self) -> AbstractContextManager[None]:
        """Return a context after which nothing is perturbed, also where an error ended it."""
        return nullcontext() if self._outputs is None else self._outputs.forgotten_afterwards()


class Perturbed(Objective[BatchT, OutputT]):
    """An objective whose loss is taken under the perturbation that raises it most."""

    def __init__(
        self,
        inner: Objective[BatchT, OutputT],
        *,
        config: Vaccine.Config,
        model: nn.Module,
        outputs: "AttentionOutputs",
        batch: BatchT,
    ) -> None:
        """Take the rows of this rank in one update, of which :meth:`loss` is given the parts."""
        self._inner = inner
        self._config = config
        self._model = model
        self._outputs = outputs
        self._batch = batch
        self._sizes_of_update: Tensor | None = None
        """Of all micro-batches and ranks, as in :meth:`_gradients`, once they are known."""

    def num_epochs(self, batch: BatchT) -> int:
        """Return the inner objective's number of updates."""
        return self._inner.num_epochs(batch)

    def num_terms(self, batch: BatchT) -> Tensor:
        """Return the inner objective's number of terms."""
        return self._inner.num_terms(batch)

    def loss(self, forward: Forward[OutputT], batch: BatchT, context: StepContext) -> LossTerm:
        """Return the inner loss under the perturbation, which stays until the next call."""
        self._outputs.forget()
        perturbation, metrics = self._perturbation(batch, context)
        parts = iter(perturbation)
        with self._outputs.adding(lambda output: next(parts)):
            after = self._inner.loss(forward, batch, context)
        metrics["defence/vaccine_loss_after"] = float(after.loss.detach())
        return LossTerm(loss=after.loss, metrics=after.metrics | metrics)

    def state_dict(self) -> dict[str, float]:
        """Return the inner objective's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the inner objective's state."""
        self._inner.load_state_dict(state)

    def _perturbation(
        self, batch: BatchT, context: StepContext
    ) -> tuple[Sequence[Tensor], Metrics]:
        """Return what to add to each attention output, in order of use, and its size."""
        gradients, own, before = self._gradients(batch, context)
        sizes = self._shared(batch, own, context) if self._config.norm == "global" else own
        norm = math.sqrt(float(sizes[0]))
        if self._config.budget == "total":
            perturbation = perturbation_of_norm(self._config.rho, gradients, norm)
            scale = self._config.rho / (norm + EPS)
        else:
            perturbation = perturbation_of_token_rms(self._config.rho, gradients)
            scale = self._config.rho
        metrics = self._metrics(sizes.tolist(), scale, num_rows(batch), context)
        return perturbation, metrics | {"defence/vaccine_loss_before": before}

    def _gradients(
        self, batch: BatchT, context: StepContext
    ) -> tuple[Sequence[Tensor], Tensor, float]:
        """Return the loss's gradients by each attention output, what they amount to, and the loss.

        That is a float64 tensor of the squared norms of the gradients, of the perturbation before
        it is scaled and of the attention outputs, and the number of their elements.

        The pass goes to the module itself: differentiating a loss that came through the engine
        disturbs the gradients that the engine collects.
        """
        probes: list[Tensor] = []
        of_outputs: list[Tensor] = []

        def probe(output: Tensor) -> Tensor:
            of_outputs.append(sum_of_squares([output.detach()]))
            probes.append(torch.zeros_like(output, requires_grad=True))
            return probes[-1]

        with self._outputs.adding(probe):
            before = self._inner.loss(self._run_module, batch, context).loss
        # Only the probes are differentiated by, so no parameter's gradient is computed or reduced.
        # Divided as the learner's average over ranks does, for EPS to weigh alike on any number.
        gradients = torch.autograd.grad(before / context.num_ranks, probes)
        self._outputs.forget()
        square = unscaled = sum_of_squares(gradients)
        if self._config.budget == "per_token":
            unscaled = sum_of_squares(perturbation_of_token_rms(1.0, gradients))
        num_elements = torch.full_like(square, sum(part.numel() for part in gradients))
        sizes = torch.stack([square, unscaled, torch.stack(of_outputs).sum(), num_elements])
        return gradients, sizes, float(before.detach())

    def _shared(self, batch: BatchT, own: Tensor, context: StepContext) -> Tensor:
        """Return the sizes of the whole update, measured with its first micro-batch."""
        if self._sizes_of_update is None:
            _, *others = micro_batches(self._batch, num_rows(batch))
            for other in others:
                own = own + self._gradients(other, context)[1]
            self._sizes_of_update = context.sum_over_ranks(own)
        return self._sizes_of_update

    def _run_module(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        device = next(self._model.parameters()).device
        return ModelOutputs.of(self._model(input_ids.to(device), attention_mask.to(device)))

    def _metrics(
        self, sizes: Sequence[float], scale: float, num_rows_here: int, context: StepContext
    ) -> Metrics:
        """Return means over the rows of the update, and how many perturbations it took."""
        gradient, unscaled, outputs, num_elements = sizes
        share = num_rows_here / num_rows(self._batch)
        rms = scale * math.sqrt(unscaled / num_elements)
        rms_of_outputs = math.sqrt(outputs / num_elements)
        num_perturbations = share if self._config.norm == "global" else float(context.num_ranks)
        return {
            "defence/vaccine_norm": share * math.sqrt(gradient),
            "defence/vaccine_rms": share * rms,
            "defence/vaccine_relative_rms": share * rms / max(rms_of_outputs, EPS),
            "defence/vaccine_num_elements": share * num_elements,
            "defence/vaccine_num_perturbations": num_perturbations,
        }


class AttentionOutputs:
    """Adds tensors to what the attention modules of a model return, in chosen forward passes.

    A checkpointed block is computed once more in the backward pass. What was added to it is then
    found by the address of the block's input: checkpointing keeps that tensor, and so does this
    class, so that no block of any other forward pass has the same. All other passes are untouched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._source: Callable[[Tensor], Tensor] | None = None
        self._block_input: Tensor | None = None
        self._added: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        """Block input and what was added, by place of the block and address of its input."""
        found = modules_of_blocks(model, ATTENTION_NAMES)
        if not found:
            raise ValueError(
                "defence vaccine must run on a model whose blocks have an attention module called "
                f"{' or '.join(ATTENTION_NAMES)}, got {type(model).__name__} without any. Choose "
                "another model or defence."
            )
        for place, (block, attention) in enumerate(found):
            block.register_forward_pre_hook(self._enter_block)
            attention.register_forward_hook(partial(self._leave_attention, place))

    @contextmanager
    def adding(self, source: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Add ``source(output)`` to each attention output [batch, seq, width], in order of use."""
        self._source = source
        try:
            yield
        finally:
            self._source = None

    def forget(self) -> None:
        """Add nothing any more, in blocks that are computed again neither."""
        self._source = None
        self._block_input = None
        self._added.clear()

    @contextmanager
    def forgotten_afterwards(self) -> Iterator[None]:
        """Forget when the context ends, however it ends."""
        try:
            yield
        finally:
            self.forget()

    def _enter_block(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        self._block_input = args[0]

    def _leave_attention(self, place: int, attention: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with what belongs to it added, None to leave it as it is."""
        assert self._block_input is not None
        block_input, self._block_input = self._block_input.detach(), None
        key = (place, block_input.data_ptr())
        hidden = output[0] if isinstance(output, tuple) else output
        if self._source is not None:
            self._added[key] = (block_input, self._source(hidden))
        if key not in self._added:
            return None
        changed = hidden + self._added[key][1]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def perturbation_of_norm(rho: float, gradients: Sequence[Tensor], norm: float) -> list[Tensor]:
    """Return ``rho g / (norm + EPS)``: of L2 norm rho over all parts if theirs is ``norm``."""
    scale = rho / (norm + EPS)
    return [(scale * g.float()).to(g.dtype) for g in gradients]


def perturbation_of_token_rms(rho: float, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return what is parallel to the gradient in every token and has RMS rho over its channels."""
    return [
        (rho * math.sqrt(g.shape[-1]) * g.float() / (norm + EPS)).to(g.dtype)
        for g in gradients
        for norm in [torch.linalg.vector_norm(g, dim=-1, keepdim=True, dtype=torch.float32)]
    ]


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum over all elements of all tensors, norms in fp32, as a float64 scalar."""
    norms = [torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]
    return torch.stack(norms).double().square().sum()
