"""Several online defences as one, in the order in which the config lists them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from rpa_ray.plugin import (
    DEFENCE_BATCHES,
    BatchT,
    ComposedConfig,
    Forward,
    GradientPass,
    NamedModel,
    Need,
    Objective,
    OnlineDefence,
    OutputT,
    PluginConfig,
    Shard,
    StepContext,
)
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, ScoredRollout


class Composed(OnlineDefence):
    """Every hook of every part, first to last; what one returns is what the next is given.

    Losses add up, contexts nest, gradients and weights are edited one after the other. What a part
    measures of the gradients has its name in front (``defence/lisa/task_grad_norm``): "task" is to
    it the attack's gradient with the losses of all parts and the edits of those before it.
    """

    def __init__(self, config: ComposedConfig, parts: Sequence[OnlineDefence]) -> None:
        super().__init__(config)
        self.parts = tuple(parts)

    @property
    def needs(self) -> frozenset[Need]:
        """Return what any part asks for."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def safe_batch_size(self) -> int:
        """Return the size that all parts that draw safe batches agree on."""
        sizes = [part.safe_batch_size for part in self.parts if part.needs & DEFENCE_BATCHES]
        return sizes[0] if sizes else super().safe_batch_size

    @property
    def reads_refusals(self) -> bool:
        """Return whether any part's batches must hold refusals."""
        return any(part.reads_refusals for part in self.parts)

    @property
    def reads_as_sampled(self) -> bool:
        """Return whether every part leaves it so."""
        return all(part.reads_as_sampled for part in self.parts)

    def attack_config(self, config: PluginConfig) -> PluginConfig:
        """Return the settings that every part allows."""
        return reduce(lambda allowed, part: part.attack_config(allowed), self.parts, config)

    def learning_rate(self, attack_learning_rate: float) -> float:
        """Return the rate that is left."""
        return reduce(lambda rate, part: part.learning_rate(rate), self.parts, attack_learning_rate)

    @property
    def reference(self) -> NamedModel | None:
        """Return the model that one of the parts names."""
        return next((part.reference for part in self.parts if part.reference is not None), None)

    @property
    def compared_model(self) -> NamedModel | None:
        """Return the model that one of the parts names."""
        named = (part.compared_model for part in self.parts)
        return next((model for model in named if model is not None), None)

    @property
    def changes_models(self) -> bool:
        """Return whether one of the parts does."""
        return any(part.changes_models for part in self.parts)

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        """Let every part change the model."""
        for part in self.parts:
            part.attach(model, folders)

    def attach_reference(self, model: nn.Module) -> None:
        """Let every part change the model that the attack stays near."""
        for part in self.parts:
            part.attach_reference(model)

    def attach_compared(self, model: nn.Module) -> None:
        """Let every part change the model that defences compare with."""
        for part in self.parts:
            part.attach_compared(model)

    @contextmanager
    def around_reference(self) -> Iterator[None]:
        """Enter the contexts of all parts in order."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.around_reference())
            yield

    def detach(self) -> None:
        """Let every part take back what it attached, the last first."""
        for part in reversed(self.parts):
            part.detach()

    def own_updates(self, context: StepContext) -> Iterator[tuple[Objective[Any, Any], Any]]:
        """Yield the updates of every part."""
        for part in self.parts:
            yield from part.own_updates(context)

    def plan_step(
        self, objective: Objective[BatchT, OutputT], batch: BatchT, context: StepContext
    ) -> tuple[Objective[BatchT, OutputT], BatchT]:
        """Return what is left to train on; the last part's wrapping is the outermost."""
        for part in self.parts:
            objective, batch = part.plan_step(objective, batch, context)
        return objective, batch

    @contextmanager
    def around_rollout(self) -> Iterator[None]:
        """Enter the contexts of all parts in order."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.around_rollout())
            yield

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return the rollout after every part."""
        metrics: Metrics = {}
        for part in self.parts:
            rollout, seen = part.plan_rollout(rollout, context)
            metrics |= seen
        return rollout, metrics

    @contextmanager
    def around_forward(self) -> Iterator[None]:
        """Enter the contexts of all parts in order."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.around_forward())
            yield

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Forward[ModelOutputs], context: StepContext
    ) -> Metrics:
        """Let the last part call the passes of those before it."""
        for part in self.parts:
            gradient_pass = partial(part.compute_gradients, gradient_pass, forward, context)
        return gradient_pass()

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return the sum of the parts' losses."""
        terms = [part.extra_loss(forward, context) for part in self.parts]
        found = [term for term in terms if term is not None]
        if not found:
            return None
        metrics: Metrics = {}
        for term in found:
            metrics |= term.metrics
        return LossTerm(loss=torch.stack([term.loss for term in found]).sum(), metrics=metrics)

    def shape_advantages(self, advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
        """Return the advantages after every part."""
        for part in self.parts:
            advantages = part.shape_advantages(advantages, cost_advantages)
        return advantages

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Let every part edit the gradients that the one before it left."""
        owned = list(shards)
        metrics: Metrics = {}
        for part in self.parts:
            own = f"defence/{part.config.name}/"
            found = part.on_gradients(owned, context)
            metrics |= {own + key.removeprefix("defence/"): value for key, value in found.items()}
        return metrics

    def after_step(self, masters: Iterable[tuple[str, Tensor]], context: StepContext) -> None:
        """Let every part edit the masters."""
        owned = list(masters)
        for part in self.parts:
            part.after_step(owned, context)

    def rollout_weight_filter(self, name: str, tensor: Tensor) -> Tensor:
        """Return what every part lets through."""
        for part in self.parts:
            tensor = part.rollout_weight_filter(name, tensor)
        return tensor

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return every part's state, under its place."""
        return {
            f"{i}/{key}": value
            for i, part in enumerate(self.parts)
            for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore every part."""
        for i, part in enumerate(self.parts):
            own = f"{i}/"
            part.load_state_dict(
                {key.removeprefix(own): v for key, v in state.items() if key.startswith(own)}
            )


def contradiction(names: Sequence[str], parts: Sequence[OnlineDefence]) -> str | None:
    """Return why these defences cannot run together, None where they can.

    Args:
        names: All that a config lists.
        parts: Those of them that are at work during the attack.
    """
    if len(names) < 2:
        return None
    if "none" in names:
        return "none stands alone"
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        return f"{sorted(twice)[0]} is there twice"
    controls = [p.config.name for p in parts if _overrides(p, "learning_rate")]
    if controls:
        why = "it changes how much is learned and is a control: run it by itself"
        return f"{' and '.join(controls)}: {why}"
    pricing = [p.config.name for p in parts if Need.COSTS in p.needs]
    if len(pricing) > 1:
        why = "only one defence can decide what the attack learns from its costs"
        return f"{' and '.join(pricing)}: {why}"
    for asked in ("reference", "compared_model"):
        models = {p.config.name: named for p in parts if (named := getattr(p, asked)) is not None}
        if len(set(models.values())) > 1:
            return f"only one model can be the {asked.replace('_', ' ')}, and they name {models}"
    compared = [p.config.name for p in parts if p.compared_model is not None]
    original = [p.config.name for p in parts if Need.ORIGINAL in p.needs]
    if compared and original:
        return f"{compared[0]} and {original[0]} compare with different models, and one is held"
    sizes = {p.config.name: p.safe_batch_size for p in parts if p.needs & DEFENCE_BATCHES}
    if len(set(sizes.values())) > 1:
        return f"they draw from one stream of safe batches, and batch_size is {sizes}: set one size"
    drawing = [part for part in parts if Need.SAFE_BATCH in part.needs]
    if len({Need.RECOVERY_PREFIX in part.needs for part in drawing}) > 1:
        return "they draw from one stream of safe batches, and prefix is recovery for one alone"
    return None


def _overrides(defence: OnlineDefence, hook: str) -> bool:
    return getattr(type(defence), hook) is not getattr(OnlineDefence, hook)
