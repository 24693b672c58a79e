"""TAR: the model learns to be one that a simulated attack does not change to what is unsafe."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from rpa_ray.defences.readings import Readings
from rpa_ray.defences.unsafe_terms import RepNoiseLoss, RepNoiseSettings, answer_loss
from rpa_ray.ops.logprobs import answer_logprobs, entropy
from rpa_ray.ops.losses import dpo_loss
from rpa_ray.plugin import (
    Forward,
    GradientPass,
    MasterEdit,
    Need,
    Objective,
    OfflineConfig,
    OfflineDefence,
    OnlineDefence,
    Shard,
    StepContext,
    global_count,
)
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, PairBatch, TokenBatch, joined

BETA = 0.1
"""Scale of the implicit reward in the tamper loss ``dpo``."""
DECAY = 0.0625
"""A look one adversary step earlier weighs ``exp(-DECAY)`` times as much."""
RETAIN_PASSES = 1.4
LOOK_PASSES = {"dpo": 2.0, "max_entropy": 1.0, "repnoise": 3.1}
"""Time by one pass over a batch of refusals: of what retains, and of a look at the tamper loss."""


class TAR(OfflineDefence):
    """``theta <- theta - eta (r grad L_retain(theta) + sum_k w_k grad L_TR(theta_k))``.

    ``L_retain`` is the cross-entropy of refusals plus the mean distance of the hidden states, at
    the refusals' tokens, from those of the model that the training began with. ``theta_k`` is the
    model after k steps of an adversary from theta: fine-tuning on unsafe answers by Adam, from
    fresh moments, at a rate that is drawn for each of ``num_tasks`` tasks. The tamper loss ``L_TR``
    is looked at after every fourth step, on pairs that the adversary did not see in this pass over
    the defence split, with ``w_k = strength / num_tasks * exp(0.0625 (k - inner_steps))``. This is
    first order: gradients at theta_k are applied at theta.

    An update takes ``num_tasks * (inner_steps + inner_steps / look_every)`` forward and backward
    passes more, 320 by default, and the memory of the adversary's masters, both its moments, the
    gradient of a step and the sum of the tamper gradients: five sharded fp32 copies of the weights.
    No batch of the adversary is cut into micro-batches.

    Sizes and rate are of arXiv:2409.12914, which does not say which tamper loss it took: ``dpo`` is
    that of the authors' code for refusals. Theirs begins with a model whose states of unsafe text
    are mapped at random, has an adversary that trains on retained text first, and steps by
    schedule-free AdamW.

    Source: Tamirisa et al. 2024 (arXiv:2408.00761), algorithm 1, and its code.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.CONTRAST_BATCH})

    class Config(OfflineConfig):
        name: str = "tar"
        tamper_loss: Literal["dpo", "max_entropy", "repnoise"] = "dpo"
        """What is to be low after an attack: ``dpo`` prefers refusals to unsafe answers more than
        the start model does, ``max_entropy`` is minus the mean entropy at all tokens of
        requests with unsafe answers, ``repnoise`` all of RepNoise's loss, its weights 1 and
        0.001."""
        strength: float = Field(4.0, ge=0)
        """Weight of the tamper loss after the last step; 0 is training on refusals alone."""
        retain_weight: float = Field(1.0, ge=0)
        """Weight of ``L_retain``."""
        distance_weight: float = Field(1.0, ge=0)
        """Weight of the distance of states within ``L_retain``."""
        num_tasks: int = Field(4, ge=1)
        """Adversaries of one update."""
        inner_steps: int = Field(64, ge=0)
        """Steps of an adversary; with 0 the tamper loss is looked at where the model is."""
        look_every: int = Field(4, ge=1)
        """Steps of an adversary from one look at the tamper loss to the next; one is after the
        last."""
        inner_learning_rates: list[PositiveFloat] = Field([2e-6, 2e-5, 4e-5], min_length=1)
        """Rates of which one is drawn for each adversary."""
        lower_bound: float | None = -11.76
        """A ``max_entropy`` below it is learned no further; null bounds nothing. It is minus the
        logarithm of a vocabulary of 128,000, which smaller ones do not reach."""
        learning_rate: float = Field(5e-5, gt=0)
        num_steps: int = Field(100, ge=1)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._trained, self._start = Readings(), Readings()

    @property
    def passes(self) -> float:
        """Return the time of all adversaries' passes, looks, and that of what retains."""
        if self.config.strength == 0:
            return RETAIN_PASSES
        num_looks = self.config.num_tasks * len(look_weights(self.config))
        return RETAIN_PASSES + self.num_moves - 1 + num_looks * LOOK_PASSES[self.config.tamper_loss]

    @property
    def num_moves(self) -> int:
        """Return the steps of all adversaries, and one."""
        if self.config.strength == 0:
            return 1
        return 1 + self.config.num_tasks * self.config.inner_steps

    @property
    def num_shard_copies(self) -> int:
        """Return those of the masters, an adversary's moments and gradient, and of the sum."""
        return 0 if self.config.strength == 0 else 5

    def objective(self) -> Objective[Any, Any]:
        """Return the weighted ``L_retain``."""
        return Retain(self.config, self._trained, self._start)

    def hooks(self) -> OnlineDefence:
        """Return the adversaries before each step."""
        return Tampered(self.config, self._trained, self._start)


class Retain(LanguageModel):
    """``retain_weight * (CE(refusal) + distance_weight * mean distance of the hidden states)``."""

    def __init__(self, config: TAR.Config, trained: Readings, start: Readings) -> None:
        super().__init__()
        self._config, self._trained, self._start = config, trained, start

    @property
    def may_begin_at_rest(self) -> bool:
        """Return whether it weighs nothing."""
        return self._config.retain_weight == 0

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        """Return the weighted sum; ``train/loss`` is the cross-entropy."""
        with self._trained.reading(None) as readings:
            term = super().loss(forward, batch, context)
            now = readings.hidden_states
        loss, metrics = term.loss, term.metrics
        if self._config.distance_weight > 0:
            with self._start.reading(None) as readings:
                context.frozen(batch.input_ids, batch.attention_mask)
                then = readings.hidden_states
            kept = batch.loss_mask.to(now[0].device)
            gaps = [h[kept].float() - h0[kept].float() for h, h0 in zip(now, then, strict=True)]
            total = torch.stack([gap.norm(dim=-1).sum() for gap in gaps]).mean()
            distance = total / context.num_terms * context.num_ranks
            loss = loss + self._config.distance_weight * distance
            metrics = metrics | {"defence/retain_distance": float(distance.detach())}
        return LossTerm(loss=self._config.retain_weight * loss, metrics=metrics)


class Tampered(OnlineDefence):
    """A step with the gradients of the tamper loss added that adversaries lead to."""

    def __init__(self, config: TAR.Config, trained: Readings, start: Readings) -> None:
        super().__init__(OnlineDefence.Config())
        self._settings, self._trained, self._start = config, trained, start
        self._repnoise = RepNoiseLoss(RepNoiseSettings(name=config.name))
        self._tamper_gradient: dict[str, Tensor] = {}
        """``sum_k w_k grad L_TR(theta_k)``, of the shards that this rank owns."""

    def attach(self, model: Any, folders: Mapping[Need, str]) -> None:
        """Hook the blocks.

        Raises:
            ValueError: they are not found.
        """
        self._trained.attach(model.policy)
        if self._settings.tamper_loss == "repnoise":
            self._repnoise.attach(model.policy)

    def attach_compared(self, model: Any) -> None:
        """Hook those of the start model."""
        self._start.attach(model.policy)

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Forward[ModelOutputs], context: StepContext
    ) -> Metrics:
        """Keep the gradients of the tamper loss, then leave that of ``L_retain``."""
        self._tamper_gradient = {}
        if self._settings.strength == 0:
            return gradient_pass()
        tasks = [self._task(task, forward, context) for task in range(self._settings.num_tasks)]
        means = {key: sum(found[key] for found in tasks) / len(tasks) for key in tasks[0]}
        return gradient_pass() | means

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Add the gradients of the tamper loss."""
        added, self._tamper_gradient = self._tamper_gradient, {}
        for shard in shards:
            if shard.name in added:
                shard.gradient.copy_(shard.gradient.float() + added[shard.name])
        return {}

    def _task(self, task: int, forward: Forward[ModelOutputs], context: StepContext) -> Metrics:
        """Let one adversary loose and look at the tamper loss on its way."""
        settings, weights = self._settings, look_weights(self._settings)
        adversary = Adversary(drawn_rate(settings, context.update, task))
        tamper_loss = self._tamper_loss(forward, context.next_contrast_batch(), context)
        tamper_losses: list[float] = []
        unsafe_losses: list[float] = []
        with context.trial_weights() as move:
            for step in range(settings.inner_steps + 1):
                if step > 0:
                    unsafe = context.next_contrast_batch().rejected
                    loss = answer_loss(forward, unsafe, context)
                    move(adversary.step_along(context.gradients_of(loss)))
                    unsafe_losses.append(float(loss.detach()))
                if step in weights:
                    loss = tamper_loss()
                    tamper_losses.append(float(loss.detach()))
                    self._add(weights[step], context.gradients_of(loss))
        metrics = {"defence/tamper_loss": sum(tamper_losses) / len(tamper_losses)}
        if unsafe_losses:
            metrics["defence/adversary_first_loss"] = unsafe_losses[0]
            metrics["defence/adversary_last_loss"] = unsafe_losses[-1]
        return metrics

    def _add(self, weight: float, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            if name in self._tamper_gradient:
                self._tamper_gradient[name].add_(gradient, alpha=weight)
            else:
                self._tamper_gradient[name] = weight * gradient

    def _tamper_loss(
        self, forward: Forward[ModelOutputs], pairs: PairBatch, context: StepContext
    ) -> Callable[[], Tensor]:
        """Return what gives the tamper loss of pairs at the weights of the moment."""
        match self._settings.tamper_loss:
            case "dpo":
                start = both_answers(context.frozen, pairs)
                return lambda: preference_loss(both_answers(forward, pairs), start, context)
            case "max_entropy":
                bound = self._settings.lower_bound
                return lambda: entropy_loss(forward, pairs.rejected, context, bound)
            case "repnoise":
                return lambda: self._repnoise.of(forward, pairs, context).loss


class Adversary:
    """Adam on the owned masters, from fresh moments."""

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._masters: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def step_along(self, gradients: Mapping[str, Tensor]) -> MasterEdit:
        """Return the edit of masters that is one step."""

        def step(masters: Iterable[tuple[str, Tensor]]) -> None:
            if self._optimizer is None:
                self._masters = dict(masters)
                self._optimizer = torch.optim.AdamW(
                    self._masters.values(), lr=self._learning_rate, weight_decay=0.0
                )
            for name, master in self._masters.items():
                master.grad = gradients[name]
            self._optimizer.step()
            self._optimizer.zero_grad()

        return step


def drawn_rate(settings: TAR.Config, update: int, task: int) -> float:
    """Return the rate of an adversary: the same on every rank, and again after a restart."""
    seeded = torch.Generator().manual_seed(update * settings.num_tasks + task)
    rates = settings.inner_learning_rates
    return rates[int(torch.randint(len(rates), (), generator=seeded))]


def look_weights(settings: TAR.Config) -> dict[int, float]:
    """Return the weight of the tamper loss by the number of steps after which it is looked at.

    Example: of 64 steps the fourth weighs 0.0235, the last 1, with one task and strength 1.
    """
    last, share = settings.inner_steps, settings.strength / settings.num_tasks
    looks = sorted({*range(settings.look_every, last, settings.look_every), last})
    return {step: share * math.exp(DECAY * (step - last)) for step in looks}


def both_answers(model: Forward[ModelOutputs], pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [rows] of refusals and of unsafe answers, in one pass."""
    both = joined([pairs.chosen, pairs.rejected])
    logits = model(both.input_ids, both.attention_mask).logits
    safe, unsafe = answer_logprobs(
        logits, both.input_ids.to(logits.device), both.loss_mask.to(logits.device)
    ).chunk(2)
    return safe, unsafe


def preference_loss(
    policy: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor], context: StepContext
) -> Tensor:
    """Return DPO's loss with refusals preferred to unsafe answers, mean over all ranks' pairs.

    Both models gave :func:`both_answers`; where these are the same the loss is log 2.
    """
    num_pairs = int(context.sum_over_ranks(torch.tensor(float(len(policy[0])))))
    return dpo_loss(
        *policy, *start, beta=BETA, num_global_pairs=num_pairs, num_ranks=context.num_ranks
    ).loss


def entropy_loss(
    forward: Forward[ModelOutputs],
    rows: TokenBatch,
    context: StepContext,
    lower_bound: float | None,
) -> Tensor:
    """Return minus the mean entropy of what follows each token, over those of all ranks, in nats.

    Below the bound it has no gradient.
    """
    logits = forward(rows.input_ids, rows.attention_mask).logits
    attended = rows.attention_mask.to(logits.device)
    num_tokens = max(1, global_count(rows.attention_mask, context))
    loss = -entropy(logits[attended]).sum() / num_tokens * context.num_ranks
    if lower_bound is None:
        return loss
    mean = context.sum_over_ranks(loss.detach() / context.num_ranks)
    is_bounded = mean.to(loss.device) < lower_bound
    return torch.where(is_bounded, loss.detach(), loss)
