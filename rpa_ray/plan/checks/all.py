"""Everything that can be refused before Ray or a model is started, of every cell, in one message.

Cheap checks come first: settings, models, data, machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpa_ray.cluster.address import cluster_to_join, require_ray_cluster
from rpa_ray.cluster.temporary import folder_for_ray
from rpa_ray.config import ClusterSettings, ConfigError, ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.data.hub import DataOutOfReach
from rpa_ray.data.hub_model import ModelOutOfReach
from rpa_ray.plan.checks.data import check_data, check_rows
from rpa_ray.plan.checks.following import fitted, following
from rpa_ray.plan.checks.gpus import (
    check_engine_share,
    check_memory,
    checkpoints_gib,
    models_gib,
)
from rpa_ray.plan.checks.machine import check_output, check_placement, placed_on_paper
from rpa_ray.plan.checks.models import model_checks
from rpa_ray.plan.checks.problems import Problems
from rpa_ray.plan.checks.settings import SETTINGS_CHECKS, check_data_source
from rpa_ray.plan.model_shapes import known_shape
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.model import ModelRecipe, in_order
from rpa_ray.world.datasets import build_world
from rpa_ray.world.shipped import place_shipped


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What can run."""

    settings: tuple[ExperimentSettings, ...]
    """Of every cell, with those that follow from the data and the models."""
    placed: list[str]
    """The models that come with the package and were placed."""
    not_checked: dict[str, None]
    """What the Hub could not be asked for: ids of models, and the rows at a config path."""


def check_all(
    cells: Sequence[tuple[str, CellInputs]], folders: dict[str, Path], *, on_paper: bool = False
) -> Checked:
    """Refuse what cannot run, all of it at once; return what will.

    Builds the embedded worlds (seconds) and places the models that come with the package where
    they are not there yet.

    Args:
        cells: The inputs of every cell, after the prefix of its keys in errors.
        folders: What will be written to, by the option that names it: ``--output`` and
            ``RPA_RAY_CACHE``.
        on_paper: True for a plan, which does without the Hub where the sizes of the models are
            known, and without the machines that ``cluster.machines`` describes.

    Raises:
        ConfigError: sizes, models, folders or the machine do not fit the settings, or the cluster
            to join does not answer.
        DataError: data cannot be read, are too few, or do not fit the context of the model.
        Refused: several of these.
    """
    not_checked: dict[str, None] = {}

    def passes_over(error: ConfigError | DataError) -> bool:
        found = _unasked(error) if on_paper else None
        not_checked.update({} if found is None else {found: None})
        return found is not None

    problems = Problems(passes_over)
    settled = [_settled(inputs.settings, problems, where) for where, inputs in cells]
    campaigns = {inputs.cache: CampaignInputs(inputs.cache) for _, inputs in cells}
    found = [
        own if check is None else _with_data(own, check, campaigns[asked.cache], problems, where)
        for (where, asked), (own, check) in zip(cells, settled, strict=True)
    ]
    disk_gib = 0.0
    to_make: dict[Path, tuple[ModelRecipe, ClusterSettings]] = {}
    for (where, asked), own, (_, check) in zip(cells, found, settled, strict=True):
        own_inputs = campaigns[asked.cache].of(own) if check is check_data else None
        with problems.noted(where):
            _check_room(own, own_inputs, len(cells), on_paper=on_paper)
        is_here = own.cluster.machines is None or not on_paper
        if own_inputs is not None and is_here and not problems.num_noted:
            disk_gib = max(disk_gib, checkpoints_gib(own_inputs))
            for recipe in in_order(own_inputs.models.recipes(), asked.cache):
                to_make.setdefault(recipe.folder(asked.cache), (recipe, own.cluster))
    needed = {"--output": disk_gib, "RPA_RAY_CACHE": models_gib(to_make.values())}
    _check_places(found, folders, needed, problems, on_paper=on_paper)
    problems.refuse()
    placed: list[str] = []
    looked_for: set[str] = set()
    for (_, asked), own in zip(cells, found, strict=True):
        placed += _place_models(campaigns[asked.cache].of(own), looked_for)
    return Checked(settings=tuple(found), placed=placed, not_checked=not_checked)


def _unasked(error: ConfigError | DataError) -> str | None:
    """Return what a plan does without: a model of known sizes, data; None of any other error."""
    if isinstance(error, ModelOutOfReach) and known_shape(str(error.value)) is not None:
        return str(error.value)
    if isinstance(error, DataOutOfReach):
        return f"rows of {str(error).partition(' must ')[0]}"
    return None


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
            check(settings)
    source, has_source = fitted(settings, check_data_source, problems, where)
    if source is not settings:  # noted, and tried as it would fit
        settings = following(source)
    before = problems.num_noted
    for check_model in model_checks(settings):
        with problems.noted(where):
            check_model()
        if problems.num_noted > before:  # others may follow from that model
            break
    if not has_source:
        return settings, None
    return settings, check_data if problems.num_noted == before else check_rows


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


def _check_room(
    settings: ExperimentSettings, inputs: CellInputs | None, num_cells: int, *, on_paper: bool
) -> None:
    """Refuse what this machine, or those that a plan is made for, have no room for."""
    machines = settings.cluster.machines
    if machines is None or not on_paper:
        check_placement(settings, num_cells)
    if machines is not None:
        placed = placed_on_paper(settings, num_cells)
        if inputs is not None:
            check_memory(inputs, machines, placed)
    if inputs is not None:
        check_engine_share(inputs)


def _check_places(
    settings: Sequence[ExperimentSettings],
    folders: dict[str, Path],
    needed_gib: Mapping[str, float],
    problems: Problems,
    *,
    on_paper: bool,
) -> None:
    """Note folders that cannot be written or have no room, and a cluster that does not answer.

    The checkpoints of cells are in ``--output``; models are made in the cache.
    """
    for option, folder in folders.items():
        with problems.noted():
            check_output(folder, option, needed_gib.get(option, 0.0))
    here = {own.cluster.address for own in settings if own.cluster.machines is None or not on_paper}
    for cluster in map(cluster_to_join, here):
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
