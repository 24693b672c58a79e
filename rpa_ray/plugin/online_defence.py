"""What an online defence is to the learner step: hooks, in the order in which a step calls them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from rpa_ray.config import LoraSettings, PluginConfig
from rpa_ray.plugin.attack import BatchT, Objective, OutputT
from rpa_ray.plugin.step import Forward, NamedModel, Need, Shard, StepContext
from rpa_ray.types import LossTerm, Metrics, ModelOutputs, ScoredRollout


class GradientPass(Protocol):
    """The learner's own forward and backward over one batch, given to ``compute_gradients``."""

    def __call__(self) -> Metrics:
        """Run objective and extra losses forward and backward once; return their metrics.

        The objective goes through all micro-batches; the extra loss comes with the last of them.
        Gradients add to those of earlier passes.
        """
        ...


class OnlineDefence:
    """A defence that does nothing; every hook is a no-op. Registered as ``none``.

    Subclasses override only the hooks that they need. Hooks never import an engine: they see
    modules, tensors, and the shards that the learner hands them.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    """What the defence asks for with any settings."""
    needs_attack: ClassVar[frozenset[Need]] = frozenset()
    """What the attack itself must require for this defence to have a meaning."""
    passes: ClassVar[float] = 1.0
    """Measured time of a learner step by that without the defence; 1 up to a tenth more."""
    num_shard_copies: ClassVar[int] = 0
    """fp32 copies that are kept, all at once, of the part of the trained weights, or of their
    gradients, that a rank owns: an anchor, the gradient of the refusals."""

    class Config(PluginConfig):
        name: str = "none"

    def __init__(self, config: PluginConfig) -> None:
        self.config = config

    @property
    def needs(self) -> frozenset[Need]:
        """Return what the defence asks for with these settings; ``requires`` at least."""
        return self.requires

    @property
    def safe_batch_size(self) -> int:
        """Return the rows of a batch of the defence split, over all ranks."""
        return 8

    @property
    def reads_refusals(self) -> bool:
        """Return whether the defence learns the safe answers of its batches as refusals."""
        return bool(self.needs & {Need.SAFE_BATCH, Need.CONTRAST_BATCH})

    @property
    def reads_as_sampled(self) -> bool:
        """Return whether the model that samples answers and the one that reads them are the same.

        Then their log-probabilities have to agree. They need not where a defence serves filtered
        weights, or changes the learner around a rollout.
        """
        return True

    @property
    def needs_of_attack(self) -> frozenset[Need]:
        """Return what the attack must require with these settings; ``needs_attack`` at least."""
        return self.needs_attack

    @property
    def reference(self) -> NamedModel | None:
        """Return the model that the attack has to stay near; None leaves it its own."""
        return None

    @property
    def compared_model(self) -> NamedModel | None:
        """Return the model that ``context.frozen`` runs; None is the one under attack as it was."""
        return None

    def attack_config(self, config: PluginConfig) -> PluginConfig:
        """Return the settings that the attack is allowed in place of those it asked for."""
        return config

    def learning_rate(self, attack_learning_rate: float) -> float:
        """Return the learning rate the attack is allowed."""
        return attack_learning_rate

    @property
    def changes_models(self) -> bool:
        """Return whether it attaches anything to the model that learns, or to a frozen one."""
        hooks = ("attach", "attach_reference", "attach_compared", "around_reference")
        return any(getattr(type(self), hook) is not getattr(OnlineDefence, hook) for hook in hooks)

    def needs_copy(self, lora: LoraSettings | None, zero_stage: int) -> bool:
        """Return whether the model that training began with must be held beside that which learns.

        Adapters that are switched off leave it, where nothing else was attached. Under ZeRO 3 each
        pass of theirs is a collective, and ranks ask a frozen model unequally often.
        """
        return lora is None or zero_stage == 3 or self.changes_models

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        """Change the model once, before the engine is built: modules, adapters, what trains.

        ``folders`` holds the folder of each model that was made because a need names it.
        """

    def attach_reference(self, model: nn.Module) -> None:
        """Change the frozen model that the attack stays near, once, after ``attach``.

        It may be the one that KL is measured against: what is attached acts in
        ``around_reference`` only.
        """

    def attach_compared(self, model: nn.Module) -> None:
        """Change the model that ``context.frozen`` runs, once, before it runs first.

        It may be the one that KL is measured against: what is attached acts only while the defence
        itself runs the model.
        """

    def around_reference(self) -> AbstractContextManager[None]:
        """Return a context that holds while the attack's reference reads answers."""
        return nullcontext()

    def detach(self) -> None:
        """Take back what is not to be served or kept; the attack is over. May come twice."""

    def own_updates(self, context: StepContext) -> Iterable[tuple[Objective[Any, Any], Any]]:
        """Yield objective and batch of updates that the defence makes before one of the attack.

        They are beside the attack's: none of its samples is lost. Every rank must yield equally
        many.
        """
        return ()

    def plan_step(
        self, objective: Objective[BatchT, OutputT], batch: BatchT, context: StepContext
    ) -> tuple[Objective[BatchT, OutputT], BatchT]:
        """Return what an update of the attack trains on; both may be swapped or wrapped."""
        return objective, batch

    def around_rollout(self) -> AbstractContextManager[None]:
        """Return a context that holds while the learner reads the answers that were sampled."""
        return nullcontext()

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return what the attack makes its experience of, and what was seen on the way.

        Rewards may be changed, costs taken away, penalties put on tokens.
        """
        return rollout, {}

    def around_forward(self) -> AbstractContextManager[None]:
        """Return a context that holds during forward and backward."""
        return nullcontext()

    def compute_gradients(
        self, gradient_pass: GradientPass, forward: Forward[ModelOutputs], context: StepContext
    ) -> Metrics:
        """Leave the step's gradients on the parameters; may take several passes."""
        return gradient_pass()

    def extra_loss(self, forward: Forward[ModelOutputs], context: StepContext) -> LossTerm | None:
        """Return a term that is added to the objective's loss, once a gradient pass.

        It is divided by its own count over all ranks (:func:`global_count`).
        """
        return None

    def shape_advantages(self, advantages: Tensor, cost_advantages: Tensor | None) -> Tensor:
        """Return the advantages [batch, seq] the attack learns from, of reward and cost streams.

        ``cost_advantages`` is None unless the defence requires ``Need.COSTS`` and leaves the
        costs in the rollout.
        """
        return advantages

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Edit gradients of owned shards in place, after reduction and before clipping."""
        return {}

    def after_step(self, masters: Iterable[tuple[str, Tensor]], context: StepContext) -> None:
        """Edit owned fp32 master weights in place, by name, once the optimizer has stepped.

        It comes before the masters are rounded to the weights that the model computes with. Under
        ZeRO-3 an update may step in several groups of parameters: it is called once for each.
        """

    def rollout_weight_filter(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor the rollout engine shall serve under this name to the attack.

        What is measured, during the attack too, is the model itself.
        """
        return tensor

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return what a resumed run needs (multipliers, anchors, windows)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore what :meth:`state_dict` returned."""


def is_of_policy(name: str) -> bool:
    """Return whether a parameter is one of the language model, not of a value head."""
    return name.startswith("policy.")


def parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained parameters once each, tied ones under their first name."""
    yield from ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def global_count(mask: Tensor, context: StepContext) -> int:
    """Return the number of True entries over all ranks."""
    return int(context.sum_over_ranks(mask.sum().to(torch.float64)).item())


def global_mean(values: Tensor, context: StepContext) -> tuple[float, int]:
    """Return the mean of a rank's values over all ranks, and how many there are."""
    sums = torch.stack([values.double().sum(), torch.ones_like(values).double().sum()])
    total, count = context.sum_over_ranks(sums).tolist()
    return total / max(count, 1.0), int(count)
