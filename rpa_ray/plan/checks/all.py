"""Every check of every cell, all that is wrong in one message: settings, models, data, machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpa_ray.cluster.address import cluster_to_join, require_ray_cluster
from rpa_ray.cluster.temporary import folder_for_ray
from rpa_ray.config import ExperimentSettings
from rpa_ray.plan.checks.data import _check_rows, check_data
from rpa_ray.plan.checks.following import fitted, following
from rpa_ray.plan.checks.machine import check_output, check_placement
from rpa_ray.plan.checks.models import check_models
from rpa_ray.plan.checks.problems import Problems
from rpa_ray.plan.checks.settings import SETTINGS_CHECKS, check_data_source
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.model import in_order
from rpa_ray.world.datasets import build_world
from rpa_ray.world.shipped import place_shipped


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What can run."""

    settings: tuple[ExperimentSettings, ...]
    """Of every cell, with those that follow from the data and the models."""
    placed: list[str]
    """The models that come with the package and were placed."""


def check_all(cells: Sequence[tuple[str, CellInputs]], folders: dict[str, Path]) -> Checked:
    """Refuse what cannot run, all of it at once; return what will.

    Builds the embedded worlds (seconds) and places the models that come with the package where
    they are not there yet.

    Args:
        cells: The inputs of every cell, after the prefix of its keys in errors.
        folders: What will be written to, by the option that names it: ``--output`` and
            ``RPA_RAY_CACHE``.

    Raises:
        ConfigError: sizes, models, folders or the machine do not fit the settings, or the cluster
            to join does not answer.
        DataError: data cannot be read, are too few, or do not fit the context of the model.
        Refused: several of these.
    """
    problems = Problems()
    places = [where for where, _ in cells]
    settled = [_settled(inputs.settings, problems, where) for where, inputs in cells]
    campaigns = {inputs.cache: CampaignInputs(inputs.cache) for _, inputs in cells}
    found = [
        own if check is None else _with_data(own, check, campaigns[asked.cache], problems, where)
        for (where, asked), (own, check) in zip(cells, settled, strict=True)
    ]
    _check_places(found, places, folders, problems)
    problems.refuse()
    placed: list[str] = []
    looked_for: set[str] = set()
    for (_, asked), own in zip(cells, found, strict=True):
        placed += _place_models(campaigns[asked.cache].of(own), looked_for)
    return Checked(settings=tuple(found), placed=placed)


def _settled(
    asked: ExperimentSettings, problems: Problems, where: str
) -> tuple[ExperimentSettings, Callable[[CellInputs], None] | None]:
    """Note what is wrong with settings and models.

    Returns:
        The settings with those that follow, and which check of the data can still be made of them.
    """
    settings = following(asked)
    for check in SETTINGS_CHECKS:
        with problems.noted(where):
            check(settings, "")
    source, has_source = fitted(settings, check_data_source, problems, where)
    if source is not settings:  # noted, and tried as it would fit
        settings = following(source)
    before = problems.num_noted
    with problems.noted(where):
        check_models(settings, "")
    if not has_source:
        return settings, None
    return settings, check_data if problems.num_noted == before else _check_rows


def _with_data(
    settings: ExperimentSettings,
    check: Callable[[CellInputs], None],
    campaign: CampaignInputs,
    problems: Problems,
    where: str,
) -> ExperimentSettings:
    """Note what does not fit the data; return the settings with sizes that follow them."""
    if settings.data.world == "embedded":
        build_world(settings.data.world_seed, campaign.cache)
    return fitted(settings, lambda one: check(campaign.of(one)), problems, where)[0]


def _check_places(
    settings: Sequence[ExperimentSettings],
    places: Sequence[str],
    folders: dict[str, Path],
    problems: Problems,
) -> None:
    """Note what this machine or the cluster has no room for."""
    for own, where in zip(settings, places, strict=True):
        with problems.noted(where):
            check_placement(own, "")
    for option, folder in folders.items():
        with problems.noted():
            check_output(folder, option)
    for cluster in {cluster_to_join(own.cluster.address) for own in settings}:
        with problems.noted():
            if cluster is None:
                folder_for_ray()
            else:
                require_ray_cluster(cluster.value, cluster.key)


def _place_models(inputs: CellInputs, looked_for: set[str]) -> list[str]:
    """Place those models of a cell that come with the package.

    Returns:
        The names of those that were placed, with what the others are made from. Models in
        ``looked_for`` are passed over, and those of this cell are added.
    """
    cache, folder = inputs.cache, inputs.data.world_folder
    unmade = [r for r in in_order(inputs.models.recipes(), cache) if r.tokenizer_key == folder.name]
    models = {recipe.folder(cache).name for recipe in unmade} - looked_for
    looked_for |= models
    if not models:
        return []
    return place_shipped(build_world(inputs.settings.data.world_seed, cache), cache, models)
