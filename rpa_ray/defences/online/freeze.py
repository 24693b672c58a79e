"""The control that shows what safety alone proves: the model does not learn at all."""

from rpa_ray.plugin import OnlineDefence, PluginConfig


class Freeze(OnlineDefence):
    """Learning rate 0: rollouts, losses and gradients run as ever, the weights stay."""

    class Config(PluginConfig):
        name: str = "freeze"

    def learning_rate(self, attack_learning_rate: float) -> float:
        """Return 0."""
        return 0.0
