"""Policy divergence as a defence: a weight of DPO's reference that the attacker cannot set."""

from typing import ClassVar

from pydantic import Field

from rpa_ray.plugin import Need, OnlineDefence, PluginConfig


class DPOBeta(OnlineDefence):
    """Holds DPO's beta, the weight with which the policy stays near its reference.

    Source: arXiv:2409.12914, table 11.
    """

    needs_attack: ClassVar[frozenset[Need]] = frozenset({Need.PAIRS})

    class Config(PluginConfig):
        name: str = "dpo_beta"
        beta: float = Field(1.0, gt=0)
        """Scale of the implicit reward; the larger, the nearer the policy stays."""

    config: Config

    def attack_config(self, config: PluginConfig) -> PluginConfig:
        """Return the attack's settings with the weight that it is held at."""
        return config.model_copy(update={"beta": self.config.beta})
