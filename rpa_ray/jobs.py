"""What the driver hands to the ranks: models to make and cells to run. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from rpa_ray.config import DataSettings, ExperimentSettings
from rpa_ray.recipe import ModelRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelJob:
    """A recipe with where its rows come from."""

    recipe: ModelRecipe
    data: DataSettings

    @property
    def name(self) -> str:
        """Return a name that no other job of a campaign has."""
        return f"model {self.recipe.id}-{self.recipe.key()[:4]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One experiment and where its results go."""

    name: str
    settings: ExperimentSettings
    folder: Path
