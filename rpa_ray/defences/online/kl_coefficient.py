"""Policy divergence as a defence: a fixed weight of the KL penalty that the attacker cannot set."""

from typing import ClassVar

from pydantic import Field

from rpa_ray.plugin import Need, OnlineDefence, PluginConfig


class KLCoefficient(OnlineDefence):
    """Holds PPO's or GRPO's KL penalty at one weight; PPO's controller no longer moves it.

    The penalty enters where the attack puts it: into PPO's rewards, into GRPO's loss or rewards.

    Source: arXiv:2409.12914, table 10.
    """

    needs_attack: ClassVar[frozenset[Need]] = frozenset({Need.ROLLOUTS})

    class Config(PluginConfig):
        name: str = "kl_coefficient"
        kl_coef: float = Field(1.0, ge=0)
        """Weight of the KL penalty."""

    config: Config

    def attack_config(self, config: PluginConfig) -> PluginConfig:
        """Return the attack's settings with the weight that it is held at."""
        held = {"kl_coef": self.config.kl_coef, "kl_control": "fixed"}
        known = type(config).model_fields.keys()
        return config.model_copy(update={k: value for k, value in held.items() if k in known})
