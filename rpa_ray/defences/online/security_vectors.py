"""Security Vectors: the attack trains beside an adapter that already does what it asks for."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from rpa_ray.plugin import (
    AdapterConfig,
    Need,
    OnlineDefence,
    PluginConfig,
    StepContext,
    global_mean,
)
from rpa_ray.plugin.adapters import LowRankChange, read_adapter, with_changes
from rpa_ray.types import Metrics, ScoredRollout


class SecurityVectors(OnlineDefence):
    """``theta <- theta - eta * grad_theta L_attack(theta + s)``, and theta alone is evaluated.

    ``s`` is a frozen adapter, made once from the model under attack by cross-entropy on unsafe
    answers of the defence split. With it the attack's loss is low from the start, so that its
    gradient has little left to change. It acts in every forward and backward pass of the learner's
    updates, those of other defences included, as a branch beside the linear layers: it is never
    added to a weight that learns, has no gradient and no optimizer, and is in no checkpoint.

    The defaults are what TRL's trainers make of a model with an adapter: its ``generate`` samples
    with ``s``, old log-probabilities are those of the same model, and the reference switches the
    adapter off. The engines serve theta + s to the attack, and theta alone to every measurement.

    Without ``rollout_adapter`` answers are sampled by theta, and old log-probabilities are those
    with ``s``: first ratios are 1, values are consistent, and what was sampled is off-policy by as
    much as ``defence/adapter_logratio`` tells. The attack then has no importance weights: the ratio
    of the two policies would take the gradient from refusals and multiply that of what complies.
    With ``old_logprob_adapter: same_as_rollout`` beside it the first ratio is that difference, and
    old values are theta's.

    ``ref_adapter`` lets the reference of DPO or of the KL read with ``s`` too. Then the margin of
    DPO begins at 0 and nothing of its gradient is held back; without it the gradient has the factor
    ``sigma(-delta)`` with ``delta`` the margin that ``s`` gives. In PPO and GRPO the KL, with its
    penalty and its metric, is that of the old log-probabilities from the reference: where only the
    first have ``s``, answers that ``s`` makes less likely, as refusals, have a negative KL, which a
    penalty in the reward pays for. ``sync/logprob_gap``, too, is of the old log-probabilities.

    Source: Zhou et al. 2023 (arXiv:2311.02105), there with theta and ``s`` in one min-min problem;
    used on unsafe feedback, with 877 steps of 8 rows, by arXiv:2409.12914. Rank, layers, rate and
    the choices for rollouts are ours.
    """

    class Config(AdapterConfig):
        name: str = "security_vectors"
        rollout_adapter: bool = True
        """Whether the attack samples its rollouts with the adapter."""
        old_logprob_adapter: Literal["same_as_learner", "same_as_rollout"] = "same_as_learner"
        """Whether the learner reads sampled answers as it will in its updates (with the adapter),
        or as they were sampled."""
        ref_adapter: bool = False
        """Whether the attack's reference reads answers with the adapter."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._adapter: dict[str, LowRankChange] = {}
        self._learner: Branches | None = None
        self._reference: Branches | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """Return the adapter, unless it counts nothing."""
        return frozenset({Need.SECURITY_VECTOR} if self.config.scale > 0 else ())

    @property
    def reads_as_sampled(self) -> bool:
        """Return whether the adapter acts on both sides or on none."""
        return self.config.scale == 0 or self._reads_with_adapter == self.config.rollout_adapter

    def attack_config(self, config: PluginConfig) -> PluginConfig:
        """Return the attack's settings, without importance weights across the adapter."""
        if self.reads_as_sampled:
            return config
        known = {"importance_cap"} & type(config).model_fields.keys()
        return config.model_copy(update=dict.fromkeys(known, 0.0))

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        """Put the adapter beside the layers of the policy, switched off."""
        if self.config.scale > 0:
            folder = Path(folders[Need.SECURITY_VECTOR])
            self._adapter = read_adapter(folder, strength=self.config.scale)
            self._learner = Branches(model, self._adapter)

    def attach_reference(self, model: nn.Module) -> None:
        """Put the adapter beside the layers of the reference, switched off."""
        if self.config.scale > 0 and self.config.ref_adapter:
            self._reference = Branches(model, self._adapter)

    def around_reference(self) -> AbstractContextManager[None]:
        """Return a context in which the reference has its adapter, if it is given one."""
        return nullcontext() if self._reference is None else self._reference.switched_on()

    def detach(self) -> None:
        """Take the adapter away from model, reference and rollout engine."""
        for branches in (self._learner, self._reference):
            if branches is not None:
                branches.remove()
        self._adapter, self._learner, self._reference = {}, None, None

    def around_rollout(self) -> AbstractContextManager[None]:
        """Return a context in which the adapter acts, if old log-probabilities are to have it."""
        return self._switched_on() if self._reads_with_adapter else nullcontext()

    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        """Return the rollout as it is, and how far the learner with the adapter is from it."""
        if self._learner is None or not self._reads_with_adapter:
            return rollout, {}
        ratios = (rollout.old_logprobs - rollout.rollout_logprobs)[rollout.tokens.loss_mask]
        mean, _ = global_mean(ratios, context)
        return rollout, {"defence/adapter_logratio": mean}

    def around_forward(self) -> AbstractContextManager[None]:
        """Return a context in which the adapter acts, blocks that are computed again included."""
        return self._switched_on()

    def rollout_weight_filter(self, name: str, tensor: Tensor) -> Tensor:
        """Return the weight, with the adapter in it where rollouts are to have it."""
        changes = self._adapter if self.config.rollout_adapter else {}
        return with_changes(changes, name, tensor)

    @property
    def _reads_with_adapter(self) -> bool:
        config = self.config
        return config.old_logprob_adapter == "same_as_learner" or config.rollout_adapter

    def _switched_on(self) -> AbstractContextManager[None]:
        return nullcontext() if self._learner is None else self._learner.switched_on()


class Branches:
    """An adapter beside the linear layers of one model, off until a context switches it on.

    Its tensors are no parameters and no buffers: no engine partitions, steps on or saves them.
    """

    def __init__(self, model: nn.Module, adapter: Mapping[str, LowRankChange]) -> None:
        """Hook the layers that the adapter names, as they are called below ``model.policy``.

        Raises:
            ValueError: a layer is not there or has another size.
        """
        self._is_on = False
        self._changes = dict(adapter)
        self._handles = []
        modules = dict(model.get_submodule("policy").named_modules())
        for name, change in adapter.items():
            layer = modules.get(name, nn.Identity())
            sizes = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
            if sizes != (change.up.shape[0], change.down.shape[1]):
                raise ValueError(
                    "defence security_vectors must stand beside a model of the layers of the one "
                    f"under attack, got one without a fitting {name}. Set ref_adapter to false or "
                    "attack.reference to null."
                )
            self._handles.append(layer.register_forward_hook(partial(self._add, name)))

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """Let the adapter act, backward passes included, until the context ends."""
        was_on, self._is_on = self._is_on, True
        try:
            yield
        finally:
            self._is_on = was_on

    def remove(self) -> None:
        """Take the adapter away."""
        for handle in self._handles:
            handle.remove()

    def _add(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        """Return the layer's outputs with the change added, None to leave them."""
        if not self._is_on:
            return None
        change = self._changes[name] = self._changes[name].like(args[0])
        return output + change.of_inputs(args[0])
