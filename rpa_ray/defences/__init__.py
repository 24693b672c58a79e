"""Defences by registry id. One row a method."""

from rpa_ray.defences.composed import Composed
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
from rpa_ray.plugin import ComposedConfig, OnlineDefence, PluginConfig

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


def defence_of(config: PluginConfig) -> OnlineDefence:
    """Return the defence of a config, composed ones with their parts."""
    if isinstance(config, ComposedConfig):
        return Composed(config, [defence_of(part) for part in config.parts])
    return DEFENCES[config.name](config)


__all__ = ["DEFENCES", "defence_of"]
