"""The untouched model: nothing is trained, only measured."""

from rpa_ray.plugin import Attack, PluginConfig


class NoAttack(Attack):
    """An attack of zero samples; its cell is the baseline of every table."""

    class Config(PluginConfig):
        name: str = "none"
