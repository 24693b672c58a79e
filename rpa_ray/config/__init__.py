"""Settings: what an experiment is, and how a file becomes one. Imports no torch, no Ray."""

from rpa_ray.config.errors import ConfigError
from rpa_ray.config.files import merge
from rpa_ray.config.load import LoadedConfig, load_config, parse_experiment, parse_tree
from rpa_ray.config.plugins import (
    LoraSettings,
    PluginConfig,
    ReferencedConfig,
    RolloutConfig,
    TrainingConfig,
)
from rpa_ray.config.schema import (
    EMBEDDED_MODELS,
    CampaignSettings,
    ClusterSettings,
    DataSettings,
    EvaluationSettings,
    ExperimentSettings,
    JudgeSettings,
    ModelSettings,
    RewardModelSettings,
    Settings,
    with_absolute_paths,
)

__all__ = [
    "EMBEDDED_MODELS",
    "CampaignSettings",
    "ClusterSettings",
    "ConfigError",
    "DataSettings",
    "EvaluationSettings",
    "ExperimentSettings",
    "JudgeSettings",
    "LoadedConfig",
    "LoraSettings",
    "ModelSettings",
    "PluginConfig",
    "ReferencedConfig",
    "RewardModelSettings",
    "RolloutConfig",
    "Settings",
    "TrainingConfig",
    "load_config",
    "merge",
    "parse_experiment",
    "parse_tree",
    "with_absolute_paths",
]
