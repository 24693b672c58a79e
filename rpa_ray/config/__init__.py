"""Settings: what an experiment is, and how a file becomes one. Imports no torch, no Ray."""

from rpa_ray.config.errors import ConfigError
from rpa_ray.config.files import merge
from rpa_ray.config.load import (
    LoadedConfig,
    load_config,
    parse_experiment,
    parse_tree,
    with_native_dtype,
)
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
    AskedDtype,
    CampaignSettings,
    ClusterSettings,
    DataSettings,
    Dtype,
    EvaluationSettings,
    ExperimentSettings,
    JudgeSettings,
    ModelSettings,
    RewardModelSettings,
    Settings,
    with_absolute_paths,
    with_dtype,
    with_local_paths,
)
from rpa_ray.config.sweep import Point, SweepSettings

__all__ = [
    "EMBEDDED_MODELS",
    "AskedDtype",
    "CampaignSettings",
    "ClusterSettings",
    "ComposedConfig",
    "ConfigError",
    "DataSettings",
    "Dtype",
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
    "with_dtype",
    "with_local_paths",
    "with_native_dtype",
]
