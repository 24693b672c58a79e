"""A control that is no defence: the attack at a tenth of its learning rate."""

from pydantic import Field

from rpa_ray.plugin import OnlineDefence, PluginConfig


class LowLearningRate(OnlineDefence):
    """Trains less, and defends nothing: what a defence must beat to have done more than that."""

    class Config(PluginConfig):
        name: str = "low_lr"
        factor: float = Field(0.1, gt=0, lt=1)
        """The attack's rate is multiplied by it."""

    config: Config

    def learning_rate(self, attack_learning_rate: float) -> float:
        """Return the reduced rate."""
        return self.config.factor * attack_learning_rate
