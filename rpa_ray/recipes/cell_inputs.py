"""Everything that one cell works with, found once: its settings, rows and models."""

from functools import cached_property
from pathlib import Path

from rpa_ray.config import ExperimentSettings
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellModels, cell_models


class CellInputs:
    """A cell with its data and models; what is asked for twice is found once."""

    def __init__(self, settings: ExperimentSettings, cache: Path) -> None:
        self.settings = settings
        self.cache = cache

    @cached_property
    def data(self) -> CellData:
        """Return where the rows of the cell come from."""
        return CellData(self.settings.data, self.cache)

    @cached_property
    def models(self) -> CellModels:
        """Return the models of the cell, as recipes or finished folders."""
        return cell_models(self.settings, self.data)
