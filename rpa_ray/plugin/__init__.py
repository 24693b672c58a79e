"""The whole extension contract: what attacks and defences are to the learner step.

An objective turns a batch into a loss; all attacks, and the jobs that make models, are
objectives. An online defence constrains the step of an objective that knows nothing about it. The
learner calls the hooks of a defence in the order in which they stand in :class:`OnlineDefence`. An
offline defence is an objective that runs before the attack, on the weights alone.

Runs in: learner ranks; settings in the driver.
Imports: `types`, `ops`, bases of settings in `config`.
Called by: `attacks`, `defences`, `learner`, `jobs`.
"""

from rpa_ray.config.plugins import (
    AdapterConfig,
    ComposedConfig,
    LoraSettings,
    MixedOfflineConfig,
    OfflineConfig,
    PluginConfig,
    ReferencedConfig,
    RolloutConfig,
    SampledOfflineConfig,
    TrainingConfig,
)
from rpa_ray.plugin.attack import Attack, BatchT, Objective, OutputT
from rpa_ray.plugin.offline_defence import (
    MixedOfflineDefence,
    OfflineDefence,
    SampledAnswer,
    SampledOfflineDefence,
)
from rpa_ray.plugin.online_defence import (
    GradientPass,
    OnlineDefence,
    global_count,
    global_mean,
    is_of_policy,
    parameters_of,
)
from rpa_ray.plugin.step import (
    DEFENCE_BATCHES,
    Forward,
    MasterEdit,
    NamedModel,
    Need,
    RefusalTuned,
    Shard,
    StepContext,
)

__all__ = [
    "DEFENCE_BATCHES",
    "AdapterConfig",
    "Attack",
    "BatchT",
    "ComposedConfig",
    "Forward",
    "GradientPass",
    "LoraSettings",
    "MasterEdit",
    "MixedOfflineConfig",
    "MixedOfflineDefence",
    "NamedModel",
    "Need",
    "Objective",
    "OfflineConfig",
    "OfflineDefence",
    "OnlineDefence",
    "OutputT",
    "PluginConfig",
    "ReferencedConfig",
    "RefusalTuned",
    "RolloutConfig",
    "SampledAnswer",
    "SampledOfflineConfig",
    "SampledOfflineDefence",
    "Shard",
    "StepContext",
    "TrainingConfig",
    "global_count",
    "global_mean",
    "is_of_policy",
    "parameters_of",
]
