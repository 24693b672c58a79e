"""What the driver hands to the ranks: models to make and cells to run. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rpa_ray.cell_models import cell_models
from rpa_ray.config import DataSettings, ExperimentSettings
from rpa_ray.recipe import ModelRecipe, in_order


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
class Cell:
    """One experiment and where its results go."""

    name: str
    settings: ExperimentSettings
    folder: Path


Job: TypeAlias = ModelJob | Cell


def plan_jobs(cells: Sequence[Cell], cache: Path) -> tuple[dict[str, Job], dict[str, list[str]]]:
    """Return the models that have to be made, then the cells, by name; and what each needs.

    A model needs the one it starts from, a cell all that it uses, where they are not in the cache.
    """
    models: dict[str, Job] = {}
    needs: dict[str, list[str]] = {}
    for cell in cells:
        for recipe in in_order(cell_models(cell.settings, cache).recipes(), cache):
            models.setdefault(_name_of(recipe), ModelJob(recipe=recipe, data=cell.settings.data))
            starts = (
                in_order([recipe.start], cache) if isinstance(recipe.start, ModelRecipe) else []
            )
            needs[_name_of(recipe)] = [_name_of(start) for start in starts]
    for cell in cells:
        recipes = in_order(cell_models(cell.settings, cache).recipes(), cache)
        needs[cell.name] = [_name_of(recipe) for recipe in recipes]
    return models | {cell.name: cell for cell in cells}, needs


def _name_of(recipe: ModelRecipe) -> str:
    return f"model {recipe.id}-{recipe.key()[:4]}"
