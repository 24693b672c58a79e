"""Settings: what an experiment is, and how a file becomes one. Imports no torch, no Ray."""

from rpa_ray.config.errors import ConfigError
from rpa_ray.config.files import merge
from rpa_ray.config.load import LoadedConfig, load_config, parse_experiment, parse_tree
from rpa_ray.config.plugins import (
    ComposedConfig,
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
    with_local_paths,
)
from rpa_ray.config.sweep import Point, SweepSettings

__all__ = [
    "EMBEDDED_MODELS",
    "CampaignSettings",
    "ClusterSettings",
    "ComposedConfig",
    "ConfigError",
    "DataSettings",
    "EvaluationSettings",
    "ExperimentSettings",
    "JudgeSettings",
    "LoadedConfig",
    "LoraSettings",
    "ModelSettings",
    "PluginConfig",
    "Point",
    "ReferencedConfig",
    "RewardModelSettings",
    "RolloutConfig",
    "Settings",
    "SweepSettings",
    "TrainingConfig",
    "load_config",
    "merge",
    "parse_experiment",
    "parse_tree",
    "with_absolute_paths",
    "with_local_paths",
]
