"""What an experiment is: typed settings and the error a user can cause.

Runs in: every process.
Imports: pydantic alone.
Called by: everything above.
"""

from rpa_ray.config.base import Settings
from rpa_ray.config.cluster import ClusterSettings, MachineSettings
from rpa_ray.config.errors import ConfigError
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
    DataSettings,
    Dtype,
    EvaluationSettings,
    ExperimentSettings,
    JudgeSettings,
    ModelSettings,
    RewardModelSettings,
    with_absolute_paths,
    with_dtype,
    with_local_paths,
    with_models,
)
from rpa_ray.config.sweep import Distribution, Point, SweepSettings

__all__ = [
    "EMBEDDED_MODELS",
    "AskedDtype",
    "CampaignSettings",
    "ClusterSettings",
    "ComposedConfig",
    "ConfigError",
    "DataSettings",
    "Distribution",
    "Dtype",
    "EvaluationSettings",
    "ExperimentSettings",
    "JudgeSettings",
    "LoraSettings",
    "MachineSettings",
    "ModelSettings",
    "PluginConfig",
    "Point",
    "ReferencedConfig",
    "RewardModelSettings",
    "RolloutConfig",
    "Settings",
    "SweepSettings",
    "TrainingConfig",
    "with_absolute_paths",
    "with_dtype",
    "with_local_paths",
    "with_models",
]
