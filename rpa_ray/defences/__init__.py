"""Defences by registry id. One row a method."""

from rpa_ray.defences.composed import Composed
from rpa_ray.defences.online.freeze import Freeze
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.defences.online.low_lr import LowLearningRate
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.defences.online.vaccine import Vaccine
from rpa_ray.plugin import ComposedConfig, OnlineDefence, PluginConfig

DEFENCES: dict[str, type[OnlineDefence]] = {
    "none": OnlineDefence,
    "freeze": Freeze,
    "lisa": Lisa,
    "low_lr": LowLearningRate,
    "refusal_loss": RefusalLoss,
    "vaccine": Vaccine,
}


def defence_of(config: PluginConfig) -> OnlineDefence:
    """Return the defence of a config, composed ones with their parts."""
    if isinstance(config, ComposedConfig):
        return Composed(config, [defence_of(part) for part in config.parts])
    return DEFENCES[config.name](config)


__all__ = ["DEFENCES", "defence_of"]
