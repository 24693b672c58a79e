"""A control: the proximal term of Lisa with the weights of another aligned model as its anchor."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from rpa_ray.defences.online.proximal import Proximal
from rpa_ray.plugin import NamedModel, Need, Shard, StepContext, is_of_policy, parameters_of
from rpa_ray.types import Metrics


class RandomAnchor(Proximal):
    """Pulls the weights to those of a different aligned model of the same architecture.

    What protects here is the pull itself, away from what the attack knows, and not nearness to the
    model that was attacked: a defence has to do better. The whole of the other weights is held in
    CPU memory until the first update; then each rank keeps the part that it owns.

    Source: a control of ours for Lisa (Huang et al. 2024, arXiv:2405.18641).
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.COMPARED_WEIGHTS})

    class Config(Proximal.Config):
        name: str = "random_anchor"
        model: str = "other_chat"
        """The other model, named as ``model.path`` is."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._whole: dict[str, Tensor] = {}

    @property
    def compared_model(self) -> NamedModel:
        """Return the other model."""
        return self.config.model

    def attach(self, model: nn.Module, folders: Mapping[Need, str]) -> None:
        """Read the other model's weights.

        Raises:
            ValueError: it has no weight of a name and a shape that are trained.
        """
        own: Any = model.policy
        other, loading = type(own).from_pretrained(
            folders[Need.COMPARED_WEIGHTS],
            dtype=own.dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        # Tied weights come once, under the name that they have in the trained model.
        weights = {
            f"policy.{name}": weight.detach()
            for name, weight in other.named_parameters()
            if name not in loading["missing_keys"]  # drawn at random
        }
        for name, parameter in parameters_of(model):
            if not is_of_policy(name):
                continue
            found = tuple(weights[name].shape) if name in weights else "no such weight"
            if found != tuple(parameter.shape):
                raise ValueError(
                    f"defence.model must have the weights that are trained, {name} with "
                    f"{tuple(parameter.shape)}, got {found} in {self.config.model!r}. Name a model "
                    "of the same architecture, and leave attack.lora out."
                )
            self._whole[name] = weights[name]

    def new_anchor(self, shard: Shard, context: StepContext) -> Tensor:
        """Return this rank's part of the other model's weights."""
        part = context.own_part(shard.name, self._whole[shard.name])
        assert part is not None  # the rank owns a shard of it
        return part.clone()

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Add the pull to the gradients; the whole weights are not needed again."""
        metrics = super().on_gradients(shards, context)
        self._whole.clear()
        return metrics

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore the anchors; where there are some, nothing is left to be cut."""
        super().load_state_dict(state)
        if self.anchors:
            self._whole.clear()
