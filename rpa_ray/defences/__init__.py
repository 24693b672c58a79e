"""Defences by registry id. One row a method."""

from rpa_ray.defences.online.freeze import Freeze
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.plugin import OnlineDefence

DEFENCES: dict[str, type[OnlineDefence]] = {
    "none": OnlineDefence,
    "freeze": Freeze,
    "refusal_loss": RefusalLoss,
}

__all__ = ["DEFENCES"]
