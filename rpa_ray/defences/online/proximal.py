"""A pull of the trained weights to an anchor; what the anchor is, subclasses say."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from rpa_ray.ops.gradients import angle_of, inner_products, rows_of
from rpa_ray.plugin import Need, OnlineDefence, PluginConfig, Shard, StepContext, is_of_policy
from rpa_ray.types import Metrics

_ANCHOR = "anchor/"


class Proximal(OnlineDefence):
    """``L = L_attack + rho / 2 * ||theta - a||^2`` over the weights that are trained.

    The pull goes to the fp32 masters that each rank owns: added to their gradient before clipping
    (``gradient``), or as ``theta <- (theta + eta rho a) / (1 + eta rho)`` after the optimizer has
    stepped (``decoupled``). The two agree for plain gradient descent and small ``eta rho`` only:
    Adam normalises the first with the attack's gradient. A value head has no anchor worth keeping
    and is left alone. Under ZeRO 1 and 2 with bfloat16 weights the gradient is held in bfloat16,
    and a pull far below it is rounded away.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    num_shard_copies: ClassVar[int] = 1

    class Config(PluginConfig):
        rho: float = Field(100.0, ge=0)
        """Weight of the proximal term; 0 is no defence: the weights are free."""
        prox: Literal["gradient", "decoupled"] = "gradient"

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.anchors: dict[str, Tensor] = {}
        """fp32, by name, shaped as the masters that this rank owns."""

    def is_active(self, context: StepContext) -> bool:
        """Return whether this update is pulled."""
        return self.config.rho > 0

    def new_anchor(self, shard: Shard, context: StepContext) -> Tensor:
        """Return the anchor of a shard that has none: its weights as they are now."""
        return shard.master.detach().clone().float()

    def on_gradients(self, shards: Iterable[Shard], context: StepContext) -> Metrics:
        """Add the pull to the gradients, and measure both and the distance to the anchor."""
        pulls = self.config.prox == "gradient" and self.is_active(context)
        products = []
        for shard in shards:
            if not is_of_policy(shard.name):
                continue
            if shard.name not in self.anchors:
                self.anchors[shard.name] = self.new_anchor(shard, context)
            gap = shard.master.detach().float() - self.anchors[shard.name]
            products.append(inner_products(shard.gradient.detach().float(), gap))
            if pulls:
                shard.gradient.copy_(shard.gradient.float() + self.config.rho * gap)
        angle = angle_of(context.sum_over_shards(rows_of(products).sum(dim=0)))
        distance = angle.second_norm
        return {
            "defence/task_grad_norm": angle.first_norm,
            "defence/proximal_grad_norm": self.config.rho * distance if pulls else 0.0,
            "defence/proximal_distance": distance,
            "defence/grad_cosine": angle.cosine,
        }

    def after_step(self, masters: Iterable[tuple[str, Tensor]], context: StepContext) -> None:
        """Move the masters towards the anchor, in the decoupled form."""
        if self.config.prox != "decoupled" or not self.is_active(context):
            return
        strength = context.learning_rate * self.config.rho
        for name, master in masters:
            if is_of_policy(name):
                master.lerp_(self.anchors[name].to(master.device), strength / (1 + strength))

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return this rank's anchors."""
        return {f"{_ANCHOR}{name}": anchor for name, anchor in self.anchors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor | float]) -> None:
        """Restore the anchors."""
        self.anchors = {
            key.removeprefix(_ANCHOR): value
            for key, value in state.items()
            if key.startswith(_ANCHOR) and isinstance(value, Tensor)
        }
