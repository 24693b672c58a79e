"""Every check of every cell, in the order in which one builds on another."""

from collections.abc import Sequence
from pathlib import Path

from rpa_ray.cluster.address import cluster_to_join, require_ray_cluster
from rpa_ray.cluster.temporary import folder_for_ray
from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.plan.checks.data import check_data
from rpa_ray.plan.checks.machine import check_output, check_placement
from rpa_ray.plan.checks.settings import check_settings
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import in_order
from rpa_ray.world.datasets import build_world
from rpa_ray.world.shipped import place_shipped


def check_all(cells: Sequence[tuple[str, CellInputs]], folders: dict[str, Path]) -> list[str]:
    """Refuse what cannot run; return the models that were placed, which come with the package.

    Builds the embedded worlds (seconds) and places those models where they are not there yet.

    Args:
        cells: The inputs of every cell, after the prefix of its keys in errors.
        folders: What will be written to, by the option that names it: ``--output`` and
            ``RPA_RAY_CACHE``.

    Raises:
        ConfigError: sizes, models, folders or the machine do not fit the settings, or the cluster
            to join does not answer.
        DataError: data cannot be read, are too few, or do not fit the context of the model.
    """
    for where, inputs in cells:
        check_settings(inputs.settings, where)
        check_placement(inputs.settings, where)
    for option, folder in folders.items():
        check_output(folder, option)
    for cluster in {cluster_to_join(inputs.settings.cluster.address) for _, inputs in cells}:
        if cluster is None:
            folder_for_ray()
        else:
            require_ray_cluster(cluster.value, cluster.key)
    placed: list[str] = []
    looked_for: set[str] = set()
    for where, inputs in cells:
        try:
            placed += _prepare_world(inputs, looked_for)
            check_data(inputs)
        except DataError as error:
            raise DataError(f"{where}{error}") from error
        except ConfigError as error:
            raise ConfigError(
                f"{where}{error.key}", error.rule, error.value, error.remedy
            ) from error
    return placed


def _prepare_world(inputs: CellInputs, looked_for: set[str]) -> list[str]:
    """Build the world of a cell's data or of its models; place those models that are shipped.

    Returns:
        The names of those that were placed, with what the others are made from. Models in
        ``looked_for`` are passed over, and those of this cell are added.
    """
    data, cache = inputs.settings.data, inputs.cache
    seed, folder = data.world_seed, inputs.data.world_folder
    if data.world == "embedded":
        build_world(seed, cache)
    unmade = [r for r in in_order(inputs.models.recipes(), cache) if r.tokenizer_key == folder.name]
    models = {recipe.folder(cache).name for recipe in unmade} - looked_for
    looked_for |= models
    return place_shipped(build_world(seed, cache), cache, models) if models else []
