"""Defences: one file and one row a method, at work during the attack or before it.

Runs in: learner ranks; their settings in the driver.
Imports: `ops`, `types`, `plugin`.
Called by: `recipes`, `plan`, `jobs`.
"""

from collections.abc import Mapping
from typing import Any

from rpa_ray.defences.composed import Composed
from rpa_ray.defences.offline.circuit_breakers import CircuitBreakers
from rpa_ray.defences.offline.frpo import FRPO
from rpa_ray.defences.offline.grad_penalty import GradPenalty
from rpa_ray.defences.offline.repnoise import RepNoise
from rpa_ray.defences.offline.reward_neutralisation import RewardNeutralisation
from rpa_ray.defences.offline.rmu import RMU
from rpa_ray.defences.offline.tar import TAR
from rpa_ray.defences.offline.token_buncher import TokenBuncher
from rpa_ray.defences.offline.vaccine_offline import VaccineOffline
from rpa_ray.defences.online.dpo_beta import DPOBeta
from rpa_ray.defences.online.freeze import Freeze
from rpa_ray.defences.online.kl_coefficient import KLCoefficient
from rpa_ray.defences.online.kl_safe_ref import KLSafeRef
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.defences.online.low_lr import LowLearningRate
from rpa_ray.defences.online.procon import ProCon
from rpa_ray.defences.online.random_anchor import RandomAnchor
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.defences.online.repnoise_online import RepNoiseOnline
from rpa_ray.defences.online.reward_shaping import RewardShaping
from rpa_ray.defences.online.safe_rlhf import SafeRLHF
from rpa_ray.defences.online.safegrad import SafeGrad
from rpa_ray.defences.online.security_vectors import SecurityVectors
from rpa_ray.defences.online.token_constrained import TokenConstrained
from rpa_ray.defences.online.vaccine import Vaccine
from rpa_ray.plugin import ComposedConfig, OfflineDefence, OnlineDefence, PluginConfig

DEFENCES: dict[str, type[OnlineDefence]] = {
    "none": OnlineDefence,
    "dpo_beta": DPOBeta,
    "freeze": Freeze,
    "kl_coefficient": KLCoefficient,
    "kl_safe_ref": KLSafeRef,
    "lisa": Lisa,
    "low_lr": LowLearningRate,
    "procon": ProCon,
    "random_anchor": RandomAnchor,
    "refusal_loss": RefusalLoss,
    "repnoise_online": RepNoiseOnline,
    "reward_shaping": RewardShaping,
    "safe_rlhf": SafeRLHF,
    "safegrad": SafeGrad,
    "security_vectors": SecurityVectors,
    "token_constrained": TokenConstrained,
    "vaccine": Vaccine,
}


OFFLINE_DEFENCES: dict[str, type[OfflineDefence]] = {
    "circuit_breakers": CircuitBreakers,
    "frpo": FRPO,
    "grad_penalty": GradPenalty,
    "repnoise": RepNoise,
    "reward_neutralisation": RewardNeutralisation,
    "rmu": RMU,
    "tar": TAR,
    "token_buncher": TokenBuncher,
    "vaccine_offline": VaccineOffline,
}


def defence_of(config: PluginConfig) -> OnlineDefence:
    """Return what a config has at work during the attack, several defences as one."""
    parts = online_defences(config)
    if len(parts) > 1:
        assert isinstance(config, ComposedConfig)
        return Composed(config, parts)
    return parts[0] if parts else OnlineDefence(OnlineDefence.Config())


def online_defences(config: PluginConfig) -> list[OnlineDefence]:
    """Return the defences at work during the attack, in the order of the config."""
    return [DEFENCES[part.name](part) for part in _parts(config) if part.name in DEFENCES]


def offline_defences(config: PluginConfig) -> list[OfflineDefence]:
    """Return the defences that harden the model before the attack, in the order of the config."""
    parts = [part for part in _parts(config) if part.name in OFFLINE_DEFENCES]
    return [OFFLINE_DEFENCES[part.name](part) for part in parts]  # type: ignore[arg-type]


def offline_defence(settings: Mapping[str, Any]) -> OfflineDefence:
    """Return an offline defence from its settings as a recipe holds them."""
    kind = OFFLINE_DEFENCES[settings["name"]]
    # A list may stand for a tuple there.
    return kind(kind.Config.model_validate(settings, strict=False))


def _parts(config: PluginConfig) -> tuple[PluginConfig, ...]:
    return config.parts if isinstance(config, ComposedConfig) else (config,)


__all__ = [
    "DEFENCES",
    "OFFLINE_DEFENCES",
    "defence_of",
    "offline_defence",
    "offline_defences",
    "online_defences",
]
