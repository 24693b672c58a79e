"""Whether the settings of the cluster agree on where engines and scorers lie."""

from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.config.cluster import what_follows


def check_layout(settings: ExperimentSettings) -> None:
    """Refuse numbers of workers and GPUs that ``cluster.layout`` does not have.

    Raises:
        ConfigError: with the key that has to change.
    """
    cluster = settings.cluster
    if not cluster.is_colocated:
        _check_apart(settings)
        return
    if cluster.layout == "per_gpu" and cluster.num_ranks != 1:
        raise ConfigError(
            "cluster.num_ranks",
            "be 1 with cluster.layout: per_gpu, a cell of which has one GPU",
            cluster.num_ranks,
            "Leave it out, or set cluster.layout: colocated.",
        )
    for key, value in what_follows(cluster.num_ranks).items():
        found = getattr(cluster, key)
        if found != value and not (key == "gpus_per_rank" and found == 0):
            raise ConfigError(
                f"cluster.{key}",
                f"be {value:g} with cluster.layout: {cluster.layout}, where each of "
                f"{cluster.num_ranks} ranks has an engine and a scorer on its own whole GPU",
                found,
                "Leave it out, or set cluster.layout: apart.",
            )
    _check_span(settings, 1)


def _check_apart(settings: ExperimentSettings) -> None:
    cluster = settings.cluster
    for kind in ("rank", "rollout_worker"):
        key = f"gpus_per_{kind}"
        found = getattr(cluster, key)
        if found % 1:
            raise ConfigError(
                f"cluster.{key}",
                "be whole with cluster.layout: apart: NCCL takes each rank and each engine on "
                "GPUs of its own",
                found,
                "Set it to 1, or set cluster.layout: per_gpu to have a cell share one GPU.",
            )
    _check_span(settings, max(1, int(cluster.gpus_per_rollout_worker)))


def _check_span(settings: ExperimentSettings, num_gpus: int) -> None:
    span = settings.cluster.engine.tensor_parallel_size
    if span not in (None, num_gpus):
        raise ConfigError(
            "cluster.engine.tensor_parallel_size",
            f"be {num_gpus}, the GPUs of an engine",
            span,
            "Leave it out, or leave cluster.gpus_per_rollout_worker out and set "
            "cluster.layout: apart.",
        )
