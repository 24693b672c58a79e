"""What the checks before a start say of one cell, in the words that a user reads."""

import re
from pathlib import Path

import pytest

from rpa_ray.config import ExperimentSettings
from rpa_ray.plan.checks.all import check_all
from rpa_ray.plan.checks.models import model_checks
from rpa_ray.recipes.cell_models import CellInputs


def check(settings: ExperimentSettings, cache: Path) -> None:
    """Make every check of a cell, as a command does; models may be placed in the cache."""
    check_all([("", CellInputs(settings, cache))], {})


def refusal(settings: ExperimentSettings, cache: Path) -> str:
    """Return what a cell is refused for, the first thing where there are several."""
    with pytest.raises(ValueError) as caught:
        check(settings, cache)
    told = str(caught.value)
    several = re.fullmatch(r"\d+ things must change first:\n1\. (.*?)\n.*", told, re.DOTALL)
    return several[1] if several else told


def check_models(settings: ExperimentSettings) -> None:
    """Make the checks of a cell's models alone."""
    for check_model in model_checks(settings):
        check_model()
