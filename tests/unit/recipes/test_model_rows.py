from collections.abc import Sequence
from pathlib import Path

from rpa_ray.config import DataSettings
from rpa_ray.data.rows import Preference, SafePair
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.model import RowKind, Rows
from rpa_ray.recipes.rows import training_rows

NUM_PAIRS = 40
DATA = DataSettings.model_validate({"reward_model": {"num_pairs": NUM_PAIRS}})
REWARD_ROWS = Rows(kind=RowKind.PREFERENCES, data_key="world", settings={"rho": 0.25, "seed": 0})
LAST_QUARTER = [False] * 30 + [True] * 10


def test_a_reward_models_flips_are_those_that_the_ranking_model_prefers_most(
    world_cache: Path,
) -> None:
    asked: list[str] = []

    def rising(pairs: Sequence[SafePair]) -> list[float]:
        asked.extend(pair.id for pair in pairs)
        return [float(i) for i in range(len(pairs))]

    rows = training_rows(REWARD_ROWS, CellData(DATA, world_cache), margins=rising)
    told = [row for row in rows if isinstance(row, Preference)]
    assert [row.flipped for row in told] == LAST_QUARTER
    assert asked == [row.id for row in told]


def test_without_a_ranking_model_chance_chooses_as_many_flips(world_cache: Path) -> None:
    rows = training_rows(REWARD_ROWS, CellData(DATA, world_cache))
    flipped = [row.flipped for row in rows if isinstance(row, Preference)]
    assert sum(flipped) == 10
    assert flipped != LAST_QUARTER
