"""What the driver hands to the ranks: models and texts to make, cells to run. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from rpa_ray.config import DataSettings, ExperimentSettings
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.model import ModelRecipe, in_order
from rpa_ray.recipes.refusals import RefusalSet


class Stage(StrEnum):
    """What a cell is at, in this order, as progress names it."""

    SETTING_UP = "models and engine"
    BEFORE = "evaluation before"
    ATTACK = "attack"
    AFTER = "evaluation after"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelJob:
    """A recipe with where its rows come from."""

    recipe: ModelRecipe
    data: DataSettings

    @property
    def name(self) -> str:
        """Return a name that no other job of a campaign has."""
        return _name_of(self.recipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalJob:
    """Refusals with where their prompts come from."""

    refusals: RefusalSet
    data: DataSettings

    @property
    def name(self) -> str:
        """Return a name that no other job of a campaign has."""
        return f"refusals {self.refusals.key()[:4]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One experiment and where its results go."""

    name: str
    settings: ExperimentSettings
    folder: Path


Job: TypeAlias = ModelJob | RefusalJob | Cell


def plan_jobs(
    cells: Sequence[Cell], campaign: CampaignInputs
) -> tuple[dict[str, Job], dict[str, list[str]]]:
    """Return what has to be made, then the cells, by name; and what each needs.

    A model needs the one it starts from and its rows, a cell all that it uses, where they are not
    in the cache.
    """
    cache, models = campaign.cache, dict[str, Job]()
    texts: dict[str, Job] = {}
    needs: dict[str, list[str]] = {}
    needs_of_others: dict[str, list[str]] = {}
    for cell in cells:
        inputs = campaign.of(cell.settings)
        data, safety = inputs.settings.data, inputs.data.safety
        job = refusal_job(inputs.data)
        recipes = models_to_make(inputs)
        for recipe in recipes:
            models.setdefault(_name_of(recipe), ModelJob(recipe=recipe, data=data))
            needs[_name_of(recipe)] = [_name_of(r) for r in in_order(recipe.made_from, cache)]
            if job is not None and recipe.rows.data_key == safety.key:
                needs[_name_of(recipe)].append(job.name)
        needs_of_others[cell.name] = [_name_of(recipe) for recipe in recipes]
        if job is not None:
            texts[job.name] = job
            writer = in_order(_refusing_recipes(safety), cache)
            needs_of_others[job.name] = [_name_of(recipe) for recipe in writer]
            needs_of_others[cell.name].append(job.name)
    others = texts | {cell.name: cell for cell in cells}
    return models | others, needs | {name: needs_of_others[name] for name in others}


def refusal_job(data: CellData) -> RefusalJob | None:
    """Return the refusals that have to be generated, None where there are none to make."""
    refusals = data.safety.refusals
    if refusals is None or refusals.is_made(data.cache):
        return None
    return RefusalJob(refusals=refusals, data=data.safety.settings)


def models_to_make(inputs: CellInputs) -> list[ModelRecipe]:
    """Return the recipes of a cell that are not in the cache, each after those it is made from."""
    recipes = inputs.models.recipes()
    if refusal_job(inputs.data) is not None:
        recipes += _refusing_recipes(inputs.data.safety)
    return in_order(recipes, inputs.cache)


def _refusing_recipes(data: CellData) -> list[ModelRecipe]:
    model = data.language_model(data.settings.refusals.model)
    return [model] if isinstance(model, ModelRecipe) else []


def _name_of(recipe: ModelRecipe) -> str:
    what = "model" if recipe.defence is None else "hardened model"
    return f"{what} {recipe.id}-{recipe.key()[:4]}"
