"""Whether the settings of a cell contradict each other, whatever the data and the models are."""

from collections.abc import Mapping

from rpa_ray.attacks.sft import SFT
from rpa_ray.config import ConfigError, ExperimentSettings, RolloutConfig, TrainingConfig
from rpa_ray.data.source import check_source
from rpa_ray.defences import defence_of
from rpa_ray.plan.checks.layout import check_layout
from rpa_ray.plan.checks.model_files import read_json_object
from rpa_ray.plugin import DEFENCE_BATCHES, Need


def check_data_source(settings: ExperimentSettings) -> None:
    """Refuse settings of the data that contradict each other; reads none.

    Raises:
        ConfigError: with the key that has to change.
    """
    check_source(settings.data)


def _check_sizes(settings: ExperimentSettings) -> None:
    cluster, data = settings.cluster, settings.data
    if cluster.zero_stage == 0 and settings.model.dtype == "bfloat16":
        raise ConfigError(
            "cluster.zero_stage",
            "be 1, 2 or 3 with bfloat16 weights",
            0,
            "DeepSpeed keeps no fp32 masters at stage 0; set model.dtype to auto or float32, or "
            "stage 1.",
        )
    defence = defence_of(settings.defence)
    if defence.needs & DEFENCE_BATCHES:
        size = defence.safe_batch_size
        _require_multiple("defence.batch_size", size, cluster.num_ranks, "num_ranks")
    if settings.training is not None:
        batch_size = settings.training.batch_size
        _require_multiple("attack.batch_size", batch_size, cluster.num_ranks, "num_ranks")
        _require_multiple("data.num_samples", data.num_samples, batch_size, "attack.batch_size")
    if isinstance(settings.attack, RolloutConfig):
        _check_first(settings.attack, "num_sft_samples", data.num_samples)
        _check_opening(settings.attack, data.num_samples)
    elif isinstance(settings.attack, SFT.Config):
        _check_first(settings.attack, "num_harmless_samples", data.num_samples)
    for key, num, batch_size in (
        ("data.reward_model.num_pairs", data.reward_model.num_pairs, data.reward_model.batch_size),
        *(
            (f"evaluation.{name}.num_rows", judge.num_rows, judge.batch_size)
            for name, judge in settings.evaluation.judges.items()
        ),
    ):
        if num < batch_size:
            raise ConfigError(key, f"fill one batch of {batch_size}", num, "Raise it.")


def _check_judges(settings: ExperimentSettings) -> None:
    """Refuse a judge that is reported and is what a defence or an attacker is priced by."""
    evaluation, attack = settings.evaluation, settings.attack
    asks = []
    if isinstance(attack, RolloutConfig) and attack.reward == "judge":
        asks.append("attack.reward is judge")
    needs = defence_of(settings.defence).needs
    if Need.COSTS in needs and Need.COST_MODEL not in needs:
        asks.append("the defence prices answers by a judge")
    if asks and "second_judge" not in evaluation.judges:
        raise ConfigError(
            "evaluation.second_judge",
            f"be given where {' and '.join(asks)}",
            None,
            "A judge that is optimised against cannot be the one that is reported.",
        )
    chosen_by = settings.data.refusals.judge
    if chosen_by is not None and chosen_by == evaluation.judge.path:
        raise ConfigError(
            "data.refusals.judge",
            "name another classifier than evaluation.judge.path",
            chosen_by,
            "A judge that chose what a model learns from cannot be the one that is reported.",
        )
    second = evaluation.second_judge
    if second is not None and second.trained and second.path == evaluation.judge.path:
        raise ConfigError(
            "evaluation.second_judge.path",
            "name another classifier than evaluation.judge.path",
            second.path,
            "Two answers of one model are no second opinion.",
        )


def _check_lora(settings: ExperimentSettings) -> None:
    training, defence = settings.training, defence_of(settings.defence)
    if training is None or training.lora is None or Need.COMPARED_WEIGHTS not in defence.needs:
        return
    raise ConfigError(
        "attack.lora",
        "be null where a defence compares the trained weights with another model's",
        training.lora.model_dump(exclude_none=True),
        "Leave attack.lora out, or take another defence.",
    )


def _check_first(attack: TrainingConfig, name: str, num_samples: int) -> None:
    """Refuse more samples of a first phase than leave one for the second."""
    key, num = f"attack.{name}", getattr(attack, name)
    _require_multiple(key, num, attack.batch_size, "attack.batch_size")
    if num >= num_samples:
        raise ConfigError(
            key,
            f"be below data.num_samples ({num_samples}), of which it is a part",
            num,
            "Lower it, or raise data.num_samples.",
        )


def _check_opening(attack: RolloutConfig, num_samples: int) -> None:
    """Refuse more samples for an opening reward than there are."""
    key, num = "attack.num_opening_samples", attack.num_opening_samples
    _require_multiple(key, num, attack.batch_size, "attack.batch_size")
    most = num_samples - attack.num_sft_samples
    if num > most:
        raise ConfigError(
            key,
            f"be at most {most}, data.num_samples less attack.num_sft_samples",
            num,
            "Lower it, or raise data.num_samples.",
        )


def _require_multiple(key: str, number: int, divisor: int, name: str) -> None:
    if number % divisor:
        raise ConfigError(
            key,
            f"be a multiple of {name} ({divisor})",
            number,
            f"Take {max(1, number // divisor) * divisor}, or change {name}.",
        )


def _check_sharding(settings: ExperimentSettings) -> None:
    """Refuse a stage that the plan would not know of, or that offloads nothing."""
    cluster, path = settings.cluster, settings.cluster.deepspeed
    if cluster.offload_optimizer and cluster.zero_stage != 3:
        raise ConfigError(
            "cluster.offload_optimizer",
            f"be false under cluster.zero_stage: {cluster.zero_stage}",
            True,
            "Set cluster.zero_stage: 3, on one rank too, or leave it out.",
        )
    if path is None:
        return
    own = read_json_object(path, "cluster.deepspeed", "name a file with a JSON object")
    sharding = own.get("zero_optimization")
    stage = sharding.get("stage", 0) if isinstance(sharding, Mapping) else cluster.zero_stage
    if stage != cluster.zero_stage:
        raise ConfigError(
            "cluster.zero_stage",
            f"be the stage of {path} ({stage}): copies and memory are planned by it",
            cluster.zero_stage,
            f"Set it to {stage}, or take the stage out of the file.",
        )


SETTINGS_CHECKS = (_check_sizes, _check_judges, _check_lora, _check_sharding, check_layout)
"""What contradicts itself whatever the data and the models are; each check finds one thing."""
