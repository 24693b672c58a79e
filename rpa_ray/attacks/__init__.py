"""Attacks: objectives that train on unsafe feedback. One row a method."""

from rpa_ray.attacks.none import NoAttack
from rpa_ray.attacks.ppo import PPO
from rpa_ray.plugin import Attack

ATTACKS: dict[str, type[Attack]] = {"none": NoAttack, "ppo": PPO}

__all__ = ["ATTACKS"]
