"""Attacks: objectives that train on unsafe feedback. One file and one row a method.

Runs in: learner ranks; their settings in the driver.
Imports: `ops`, `types`, `plugin`.
Called by: `recipes`, `plan`, `jobs`.
"""

from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.attacks.dpo import DPO
from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.none import NoAttack
from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.plugin import Attack

ATTACKS: dict[str, type[Attack]] = {
    "none": NoAttack,
    "sft": SFT,
    "dpo": DPO,
    "ppo": PPO,
    "grpo": GRPO,
    "best_of_n": BestOfN,
}

__all__ = ["ATTACKS"]
